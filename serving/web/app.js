// The web page: pictures in, POST /predict for each, answers as bars. Nothing is loaded from or sent to anywhere else.

const SHOWN_CLASSES = 10;
const IN_FLIGHT = 3; // Pictures asked about at once: more would only wait in the server.
const MAX_CARDS = 100;
const MAX_RETRIES = 4;
const TYPES = ["image/jpeg", "image/png", "image/webp"];
const KEY = "rayml-api-key";

const $ = (id) => document.getElementById(id);
const results = $("results");
const waiting = []; // Jobs that nobody has asked about yet.
let running = 0;
let about = { limits: {}, examples: [] };

// --- the server

class Refusal extends Error {
  constructor(text, code, retry) {
    super(text);
    this.code = code;
    this.retry = retry; // Whether asking again may help.
  }
}

async function ask(path, body) {
  const headers = { accept: "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers["x-api-key"] = key;
  // Its bytes decide what a picture is; the server reads any type under this name.
  if (body) headers["content-type"] = TYPES.includes(body.type) ? body.type : "application/octet-stream";
  for (let attempt = 0; ; attempt++) {
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", headers, body, cache: "no-store" });
    } catch {
      if (body && (await unreadable(body))) throw new Refusal("This file can no longer be read.", "gone", false);
      const text = navigator.onLine ? "The server cannot be reached." : "You are offline.";
      throw new Refusal(text, "unreachable", true);
    }
    const answer = await response.json().catch(() => null);
    if (response.ok && answer) return answer;
    const busy = response.status === 503 || response.status === 429;
    if (!busy || attempt === MAX_RETRIES) throw refusal(response.status, answer);
    const wait = Number(response.headers.get("retry-after")) || 1;
    await new Promise((done) => setTimeout(done, 1000 * Math.min(wait, 10) * (1 + Math.random())));
  }
}

// A file that was changed or deleted after it was chosen fails like a broken network.
async function unreadable(file) {
  return file.slice(0, 1).arrayBuffer().then(() => false, () => true);
}

function refusal(status, answer) {
  const code = answer?.error?.code ?? "";
  const said = answer?.error?.message ?? `The server answered ${status}.`;
  if (status === 401) return new Refusal("The server asks for an API key.", "unauthorized", true);
  if (status === 413) return new Refusal(`This picture is too large. ${largest()}`, code, false);
  if (status === 415) return new Refusal("This is not a JPEG, PNG or WebP picture.", code, false);
  if (code === "unreadable_image") {
    return new Refusal("This picture cannot be read: it is damaged or not complete.", code, false);
  }
  if (code === "empty_body" || code === "empty_image") return new Refusal("This file is empty.", code, false);
  if (status === 503 || status === 429) return new Refusal("The server is busy. Try again in a moment.", code, true);
  if (status === 408 || status === 504) return new Refusal("The server took too long to answer.", code, true);
  if (status >= 500) return new Refusal("The server failed to answer.", code, true);
  return new Refusal(said, code, false);
}

function largest() {
  const { max_image_bytes: bytes, max_pixels: pixels } = about.limits;
  if (!bytes) return "";
  return `At most ${size(bytes)} and ${Math.round(pixels / 1e6)} megapixels are read.`;
}

function size(bytes) {
  return bytes < 2 ** 20 ? `${Math.round(bytes / 1024)} KB` : `${Math.round(bytes / 2 ** 20)} MB`;
}

// --- one picture

function add(files) {
  const added = [...files].slice(0, MAX_CARDS);
  for (const file of added.reverse()) {
    const card = $("card").content.firstElementChild.cloneNode(true);
    const image = card.querySelector("img");
    image.src = URL.createObjectURL(file);
    image.alt = file.name || "pasted picture";
    image.onerror = () => (image.parentElement.hidden = true); // Not a picture: the server says so.
    card.querySelector(".file").textContent = file.name || "pasted picture";
    const job = { file, card, url: image.src };
    card.querySelector(".again").onclick = () => enqueue(job);
    card.querySelector(".explain").onclick = () => explain(job);
    card.job = job;
    results.prepend(card);
    enqueue(job);
  }
  while (results.children.length > MAX_CARDS) forget(results.lastElementChild);
  tidy();
}

function enqueue(job) {
  job.card.className = "card waiting";
  job.card.querySelector("h3").textContent = "Looking …";
  job.card.querySelector(".again").hidden = true;
  waiting.push(job);
  next();
}

function next() {
  while (running < IN_FLIGHT && waiting.length) {
    running++;
    classify(waiting.shift()).finally(() => {
      running--;
      next();
    });
  }
}

async function classify(job) {
  if (!job.card.isConnected) return;
  try {
    show(job, await ask("/predict", job.file));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    refuse(job, error);
  }
}

function show(job, answer) {
  const { card } = job;
  card.className = "card";
  const sure = answer.confidence >= 0.5;
  card.querySelector("h3").textContent = sure ? answer.label : `Perhaps ${answer.label}`;
  const ranked = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  const rows = ranked.slice(0, SHOWN_CLASSES);
  const rest = ranked.slice(SHOWN_CLASSES).reduce((sum, [, share]) => sum + share, 0);
  if (ranked.length > SHOWN_CLASSES) rows.push([`${ranked.length - SHOWN_CLASSES} others`, rest]);
  card.querySelector("tbody").replaceChildren(...rows.map(([label, share]) => row(label, share)));
  card.querySelector("table").hidden = false;
  const { name, version, bundle } = answer.model;
  card.querySelector(".by").textContent = `${name}, version ${version} (${bundle.slice(0, 12)})`;
  card.querySelector(".explain").hidden = false;
  requestAnimationFrame(() => {
    for (const bar of card.querySelectorAll(".track i")) bar.style.width = `${100 * bar.dataset.share}%`;
  });
  say(`${job.file.name || "The picture"}: ${sure ? "" : "perhaps "}${answer.label}, ${percent(answer.confidence)}`);
}

function row(label, share) {
  const line = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = label;
  const cell = document.createElement("td");
  const track = document.createElement("span");
  track.className = "track";
  track.setAttribute("aria-hidden", "true");
  const bar = document.createElement("i");
  bar.dataset.share = share;
  track.append(bar);
  const number = document.createElement("span");
  number.className = "share";
  number.textContent = percent(share);
  const both = document.createElement("div");
  both.className = "share-of";
  both.append(track, number);
  cell.append(both);
  line.append(head, cell);
  return line;
}

function percent(share) {
  if (share >= 0.9995) return "> 99.9 %"; // Never certain.
  return share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}

function refuse(job, error) {
  const { card } = job;
  card.className = "card refused";
  card.querySelector("h3").textContent = error.message;
  card.querySelector(".again").hidden = !error.retry;
  if (error.code === "unauthorized") askForKey();
  say(`${job.file.name || "The picture"}: ${error.message}`);
}

// --- where the model looked

async function explain(job) {
  const button = job.card.querySelector(".explain");
  const canvas = job.card.querySelector("canvas");
  if (button.getAttribute("aria-pressed") === "true") {
    press(button, canvas, false);
    return;
  }
  if (!job.grid) {
    button.disabled = true;
    button.textContent = "Looking again …";
    try {
      job.grid = (await ask("/explain", job.file)).grid;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      say(error.message);
      button.textContent = `${error.message} Try again`;
      return;
    } finally {
      button.disabled = false;
    }
    paint(canvas, job.grid);
  }
  press(button, canvas, true);
  say("The picture is darkened where the model did not look.");
}

function press(button, canvas, shown) {
  canvas.hidden = !shown;
  button.setAttribute("aria-pressed", String(shown));
  button.textContent = shown ? "Hide where the model looked" : "Show where the model looked";
}

// Darken what does not matter: a cell that matters as much as the most important one stays as it is.
function paint(canvas, grid) {
  const side = grid.length;
  const most = Math.max(...grid.flat(), 1e-9);
  const small = new OffscreenCanvas(side, side);
  const pixels = new ImageData(side, side);
  grid.flat().forEach((drop, at) => {
    pixels.data[4 * at + 3] = 215 * (1 - Math.sqrt(Math.max(0, drop) / most));
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  canvas.width = canvas.height = 224;
  const brush = canvas.getContext("2d");
  brush.imageSmoothingQuality = "high";
  brush.drawImage(small, 0, 0, canvas.width, canvas.height);
}

// --- the page

function say(text) {
  $("status").textContent = text;
}

function forget(card) {
  URL.revokeObjectURL(card.job.url);
  card.remove();
}

function tidy() {
  $("results-title").hidden = $("clear").hidden = !results.children.length;
}

function askForKey() {
  if ($("key-form").hidden) {
    const wrong = sessionStorage.getItem(KEY) !== null;
    $("key-problem").textContent = wrong ? "The server does not know this API key." : "This server asks for an API key.";
    $("key-form").hidden = false;
    $("key").focus();
  }
}

async function introduce() {
  try {
    about = await ask("/web/about");
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.code === "unauthorized") askForKey();
    else $("model").textContent = error.message;
    return;
  }
  const { name, version } = about.model;
  $("model").textContent = `${name}, version ${version}: ${about.classes.length} classes`;
  $("model").title = about.classes.join(", ");
  $("limit").textContent = `, up to ${size(about.limits.max_image_bytes)} each`;
  $("examples").hidden = !about.examples.length;
  $("examples").querySelector("ul").replaceChildren(...about.examples.map(example));
}

function example(label) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const image = document.createElement("img");
  const caption = document.createElement("span");
  button.type = "button";
  image.src = `/web/examples/${label}.jpg`;
  image.alt = "";
  image.width = image.height = 83;
  caption.textContent = label;
  button.append(image, caption);
  button.setAttribute("aria-label", `Classify the drawing of: ${label}`);
  button.onclick = async () => {
    const drawn = await fetch(image.src).then((response) => response.blob());
    add([new File([drawn], `drawing of: ${label}`, { type: drawn.type })]);
  };
  item.append(button);
  return item;
}

for (const id of ["files", "camera"]) {
  $(id).onchange = (event) => {
    add(event.target.files);
    event.target.value = ""; // The same file may be chosen again.
  };
}
document.onpaste = (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
};
let depth = 0; // Of dragenter events without their dragleave.
document.ondragenter = () => document.body.classList.toggle("over", ++depth > 0);
document.ondragleave = () => document.body.classList.toggle("over", --depth > 0);
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("over");
  add(event.dataTransfer.files);
};
$("clear").onclick = () => {
  waiting.length = 0;
  [...results.children].forEach(forget);
  tidy();
  $("files").focus();
};
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  $("files").focus();
  introduce();
  for (const card of results.children) if (!card.querySelector(".again").hidden) enqueue(card.job);
};
introduce();
