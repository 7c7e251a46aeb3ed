// The page: a grid of which only the tiles in view exist, a search over all answers, a large view.
// A classic script, as a page from `file://` may load no modules. What comes from elsewhere is only
// ever set as text: there is no `innerHTML` here.
"use strict";

const gallery = (() => {
  const MOST_TILES = 200;
  const TALLEST = 15_000_000; // px; Chromium cuts an element off at some 16.7 million
  const MOST_ASKS = 50; // to choose from: more have a picture each
  const AT_ONCE = 4; // scripts of answers that load at the same time
  const KEPT = 256; // scripts of small pictures in memory: some 60 MB, and more than there are tiles
  const STILL = 150; // ms without a scroll event
  const WORDS = { done: "Done", failed: "Failed", retry: "Waiting", pending: "Pending", skipped: "Skipped", gone: "Gone" };
  const KINDS = { picture: "picture", request: "request refused", crash: "runner crashed", timeout: "timeout", empty: "empty answer", daemon: "daemon", answer: "not to the schema" };

  // Columns of a picture, and of an answer, as `gallery/index.py` writes them.
  const [PATH, CUSTOM, ORIGINAL, WIDTH, HEIGHT, SMALL, ANSWERS] = [0, 1, 2, 3, 4, 5, 6];
  const [ASK, STATE, TEXT, FINISH, KIND, ERROR, TOKENS, SECONDS, HOST, MODEL] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

  const $ = (id) => document.getElementById(id);
  const grid = $("grid"), paper = $("paper"), large = $("large");
  let index = null; // tables and counts of all pictures
  let pictures = []; // by number; empty where not loaded yet
  let texts = []; // what is searched, by number; made at the first search
  let shown = []; // numbers, filtered and sorted
  let loaded = 0; // scripts of answers
  let active = 0; // place in `shown`
  let changes = 0; // counts up when tiles must be filled again
  const wanted = { words: [], state: "", ask: 0, kind: "", host: "", order: "run" };

  // Elements

  function make(tag, className = "", text = "") {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text) element.textContent = text;
    return element;
  }

  // Sets a text, with the words that are searched marked.
  function write(element, text) {
    element.dir = "auto";
    if (!wanted.words.length) {
      element.textContent = text;
      return element;
    }
    const words = wanted.words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const parts = text.split(new RegExp(`(${words.join("|")})`, "iu"));
    element.replaceChildren(...parts.map((part, n) => (n % 2 ? make("mark", "", part) : part)));
    return element;
  }

  function later(wait, work) {
    let timer = 0;
    return () => {
      clearTimeout(timer);
      timer = setTimeout(work, wait);
    };
  }

  const count = (number) => number.toLocaleString("en");
  const nameOf = (picture) => picture[CUSTOM] || picture[PATH].split(/[\\/]/).pop();

  // Loading

  function load(file) {
    return new Promise((done) => {
      const script = make("script");
      script.src = file;
      script.onload = script.onerror = () => done(script.remove());
      document.head.append(script);
    });
  }

  const four = (number) => String(number).padStart(4, "0");

  async function loadAnswers() {
    let next = 1;
    const scripts = Math.ceil(index.pictures / index.shard);
    const some = async () => {
      while (next <= scripts) await load(`data/${four(next++)}.js`);
    };
    // What is seen at first goes first, with its small pictures.
    if (scripts) await load(`data/${four(next++)}.js`);
    await loadSmall();
    await Promise.all(Array.from({ length: AT_ONCE }, some));
  }

  const small = new Map(); // number of a script → its pictures, the one used last at the end

  function smallOf(number) {
    const script = Math.floor(number / index.thumbnails) + 1;
    const list = small.get(script);
    if (list === undefined) return needed.add(script), "";
    if (list) small.delete(script), small.set(script, list);
    const data = list && list[number % index.thumbnails];
    return data ? `data:image/jpeg;base64,${data}` : "";
  }

  const needed = new Set();

  // Loads the small pictures that were missed; what has left the view meanwhile is asked for again
  // when it comes back.
  async function loadSmall() {
    const scripts = [...needed];
    needed.clear();
    await Promise.all(scripts.map((script) => {
      small.set(script, null);
      return load(`thumbnails/${Math.floor((script - 1) / index.folder)}/${four(script)}.js`);
    }));
    if (scripts.length) draw();
    while (small.size > KEPT) small.delete(small.keys().next().value);
  }

  const soonSmall = later(40, loadSmall);

  // Choosing

  function fits(answer) {
    return (!wanted.state || stateOf(answer) === wanted.state)
      && (!wanted.kind || index.kinds[answer[KIND]] === wanted.kind)
      && (!wanted.host || index.hosts[answer[HOST]] === wanted.host);
  }

  // A cut-off answer is done, but chosen by a state of its own.
  function stateOf(answer) {
    if (wanted.state === "length") return index.finishes[answer[FINISH]];
    return index.states[answer[STATE]];
  }

  function textOf(number) {
    const picture = pictures[number];
    return (texts[number] ??= [picture[PATH], picture[CUSTOM], ...picture[ANSWERS].map((a) => `${a[TEXT]}\n${a[ERROR]}`)].join("\n").toLowerCase());
  }

  const askOf = (answer) => index.asks[answer[ASK]] ?? answer[ASK];
  const answerOf = (picture) => picture[ANSWERS].find((a) => a[ASK] === wanted.ask) ?? picture[ANSWERS][0];
  const byNumber = (value) => (a, b) => value(pictures[b]) - value(pictures[a]) || a - b;
  const names = new Intl.Collator("en", { numeric: true });
  const ORDERS = {
    name: (a, b) => names.compare(pictures[a][PATH], pictures[b][PATH]) || a - b,
    long: byNumber((picture) => answerOf(picture)[TEXT].length),
    short: byNumber((picture) => -answerOf(picture)[TEXT].length),
    slow: byNumber((picture) => answerOf(picture)[SECONDS]),
    large: byNumber((picture) => picture[WIDTH] * picture[HEIGHT]),
  };

  const isFiltered = () => Boolean(wanted.state || wanted.kind || wanted.host);
  const isPlain = () => !isFiltered() && !wanted.words.length && wanted.order === "run";

  function choose() {
    const filtered = isFiltered(), plain = isPlain();
    shown = [];
    for (let number = 0; number < index.pictures; number++) {
      const picture = pictures[number];
      if (picture === undefined ? !plain : filtered && !picture[ANSWERS].some(fits)) continue;
      if (plain || wanted.words.every((word) => textOf(number).includes(word))) shown.push(number);
    }
    if (wanted.order !== "run") shown.sort(ORDERS[wanted.order]);
    changes++;
    tell();
    measure();
  }

  function chooseAnew() {
    choose();
    active = 0;
    scrollTo(0);
  }

  function tell() {
    const all = index.pictures, scripts = Math.ceil(all / index.shard);
    const part = shown.length === all ? count(all) : `${count(shown.length)} of ${count(all)}`;
    const more = loaded < scripts ? ` · loading ${Math.floor((100 * loaded) / scripts)} %` : "";
    $("count").textContent = `${part} ${all === 1 ? "picture" : "pictures"}${more}`;
    $("nothing").hidden = shown.length > 0 || loaded < scripts;
  }

  // The grid. `at` is how far the pictures are scrolled, `seen` where the element's own bar stood
  // when it was looked at: for a million pictures it is shorter than they are. Small movements go
  // through as they are, large ones in proportion, and once it is still the bar is put right.

  let columns = 1, width = 0, row = 1, view = 0, gap = 14, at = 0, seen = 0;
  const tiles = new Map(); // place in `shown` → element
  const spare = [];

  function measure() {
    const style = getComputedStyle(grid), root = getComputedStyle(document.documentElement);
    const inside = grid.clientWidth - 2 * parseFloat(style.paddingLeft);
    const caption = parseFloat(root.getPropertyValue("--caption")) * parseFloat(root.fontSize);
    gap = parseFloat(style.paddingTop);
    view = grid.clientHeight;
    for (let least = inside < 600 ? 150 : 216; ; least *= 1.1) {
      columns = Math.max(1, Math.floor((inside + gap) / (least + gap)));
      width = (inside - gap * (columns - 1)) / columns;
      row = Math.round(width * 0.72 + caption + gap);
      if (columns === 1 || columns * (Math.ceil(view / row) + 3) <= MOST_TILES) break;
    }
    paper.style.height = `${Math.min(total(), TALLEST)}px`;
    paper.style.setProperty("--wide", `${width}px`);
    at = Math.min(at, most());
    draw(true);
  }

  const total = () => Math.ceil(shown.length / columns) * row - (shown.length ? gap : 0);
  const most = () => Math.max(0, total() + 2 * gap - view);
  const mostSeen = () => Math.max(1, Math.min(total(), TALLEST) + 2 * gap - view);

  function scrolled() {
    const moved = grid.scrollTop - seen;
    seen = grid.scrollTop;
    if (total() <= TALLEST) at = seen;
    else if (Math.abs(moved) > 2 * view || seen <= 0 || seen >= mostSeen() - 1) at = (seen / mostSeen()) * most();
    else at = Math.min(Math.max(0, at + moved), most());
    draw();
    settle();
  }

  const settle = later(STILL, () => {
    if (total() > TALLEST) scrollTo(at);
  });

  function scrollTo(place) {
    at = Math.min(Math.max(0, place), most());
    grid.scrollTop = total() > TALLEST ? (at / most()) * mostSeen() : at;
    seen = grid.scrollTop;
    draw();
  }

  function draw(moveAll = false) {
    if (!index) return;
    const first = Math.max(0, Math.floor((at - gap) / row) - 1) * columns;
    const end = Math.min(shown.length, first + columns * (Math.ceil(view / row) + 3), first + MOST_TILES);
    for (const [place, tile] of tiles) {
      if (place < first || place >= end) {
        tiles.delete(place);
        spare.push(tile);
      }
    }
    for (let place = first; place < end; place++) {
      let tile = tiles.get(place);
      if (!tile) {
        tile = spare.pop() ?? newTile();
        tiles.set(place, tile);
      }
      const top = Math.floor(place / columns) * row + seen - at;
      const left = (place % columns) * (width + gap);
      tile.style.transform = `translate(${left}px, ${top}px)`;
      if (moveAll || tile.style.width === "") {
        tile.style.width = `${width}px`;
        tile.style.height = `${row - gap}px`;
      }
      fill(tile, place);
    }
    for (const tile of spare.splice(0)) tile.remove();
    if (needed.size) soonSmall();
  }

  function newTile() {
    const tile = make("div", "tile");
    tile.setAttribute("role", "option");
    tile.style.width = `${width}px`;
    tile.style.height = `${row - gap}px`;
    tile.thumb = make("div", "thumb");
    tile.caption = make("div", "caption");
    tile.append(tile.thumb, tile.caption);
    paper.append(tile);
    return tile;
  }

  function fill(tile, place) {
    const number = shown[place], picture = pictures[number];
    tile.id = `tile-${place}`;
    tile.setAttribute("aria-selected", String(place === active));
    if (place === active) grid.setAttribute("aria-activedescendant", tile.id);
    const key = `${number} ${changes} ${picture !== undefined}`;
    if (tile.key !== key) {
      tile.key = key;
      tile.waits = picture?.[SMALL] === 1;
      tile.setAttribute("aria-posinset", place + 1);
      tile.setAttribute("aria-setsize", shown.length);
      tile.classList.toggle("loading", !picture);
      tile.thumb.replaceChildren();
      tile.caption.replaceChildren();
      if (picture) fillCaption(tile, picture);
    }
    if (!tile.waits) return;
    const source = smallOf(number);
    if (source) {
      const image = make("img");
      image.alt = "";
      image.decoding = "async";
      image.src = source;
      tile.thumb.prepend(image);
      tile.waits = false;
    }
  }

  function fillCaption(tile, picture) {
    const answer = answerOf(picture), name = nameOf(picture);
    const flag = flagOf(picture);
    if (flag) tile.thumb.append(flag);
    if (!tile.waits) tile.thumb.append(make("span", "ending", name.includes(".") ? name.split(".").pop().slice(0, 5) : "?"));
    const text = answer[TEXT] || answer[ERROR];
    tile.caption.append(write(make("p", answer[TEXT] ? "" : "bad"), near(text)), write(make("small"), name));
    tile.setAttribute("aria-label", `${name}${flag ? `, ${flag.textContent}` : ""}: ${text.slice(0, 300)}`);
  }

  // A long text from where the first word that is searched stands.
  function near(text) {
    const begin = wanted.words.length ? text.toLowerCase().indexOf(wanted.words[0]) : -1;
    return begin > 90 ? `…${text.slice(begin - 40, begin + 300)}` : text.slice(0, 300);
  }

  // What is not in order about a picture: of its answers the first that is not.
  function flagOf(picture) {
    const answer = picture[ANSWERS].find((a) => index.states[a[STATE]] !== "done") ?? picture[ANSWERS].find((a) => index.finishes[a[FINISH]] === "length");
    if (!answer) return null;
    const state = index.states[answer[STATE]];
    return state === "done" ? make("span", "flag other", "Cut off") : make("span", `flag ${state === "failed" ? "failed" : "other"}`, WORDS[state] ?? state);
  }

  // Moving about

  function go(place) {
    active = Math.min(Math.max(0, place), shown.length - 1);
    const top = Math.floor(active / columns) * row;
    if (top < at) scrollTo(top);
    else if (top + row > at + view - gap) scrollTo(top + row + gap - view);
    else draw();
  }

  function moved(event) {
    const page = Math.max(1, Math.floor(view / row)) * columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page, Home: -active, End: shown.length - 1 - active };
    if (event.altKey || event.ctrlKey || event.metaKey || !shown.length) return;
    if (event.key === "Enter" || event.key === " ") open(active);
    else if (event.key in steps) {
      const to = active + steps[event.key];
      // Not out of the column: up and down end at the first and the last row.
      if (!event.key.startsWith("Arrow") || (to >= 0 && to < shown.length)) go(to);
      else if (event.key === "ArrowDown" && Math.floor(active / columns) < Math.floor((shown.length - 1) / columns)) go(shown.length - 1);
    } else return;
    event.preventDefault();
  }

  // The large view

  function open(place) {
    if (!pictures[shown[place]]) return;
    go(place);
    fillLarge();
    if (!large.open) large.showModal();
    $("name").focus({ preventScroll: true });
  }

  function step(by) {
    const place = active + by;
    if (place < 0 || place >= shown.length || !pictures[shown[place]]) return;
    go(place);
    fillLarge();
  }

  function fillLarge() {
    const number = shown[active], picture = pictures[number], address = addressOf(picture);
    $("place").textContent = `${count(active + 1)} of ${count(shown.length)}`;
    $("previous").disabled = active === 0;
    $("next").disabled = active === shown.length - 1;
    write($("name"), nameOf(picture));
    const size = picture[WIDTH] ? ` · ${picture[WIDTH]} × ${picture[HEIGHT]}` : "";
    const where = write(make(address ? "a" : "span"), picture[PATH]);
    if (address) Object.assign(where, { href: address, target: "_blank", rel: "noreferrer" });
    $("path").replaceChildren(where, size);
    $("answers").replaceChildren(...picture[ANSWERS].map((answer) => articleOf(answer)));
    $("answers").parentElement.scrollTop = 0;
    showOriginal($("picture"), $("missing"), number, address);
  }

  // The small picture at once, the original in its place when it is there.
  function showOriginal(image, missing, number, address) {
    const picture = pictures[number];
    const source = picture[SMALL] ? smallOf(number) : "";
    image.classList.add("small");
    image.hidden = !source;
    if (source) image.src = source;
    image.alt = nameOf(picture);
    image.number = number;
    missing.hidden = true;
    const failed = () => {
      if (image.number !== number) return;
      missing.hidden = false;
      missing.textContent = source ? "Shown small: this browser cannot open the original" : "No picture to show";
    };
    if (!address) return failed();
    const original = new Image();
    original.onload = () => {
      if (image.number !== number) return;
      image.src = original.src;
      image.hidden = false;
      image.classList.remove("small");
    };
    original.onerror = failed;
    original.src = address;
  }

  function addressOf(picture) {
    const path = picture[PATH], encoded = (text) => text.split("/").map(encodeURIComponent).join("/");
    if (picture[ORIGINAL] !== 1) return picture[ORIGINAL] || "";
    const base = index.base.replace(/\/?$/, "/");
    // Beside the gallery: both may be moved together.
    return path.startsWith(base) ? `${index.up}${encoded(path.slice(base.length))}` : `file://${encoded(path)}`;
  }

  function articleOf(answer) {
    const ask = askOf(answer), state = index.states[answer[STATE]];
    const article = make("article");
    article.append(write(make("h3"), ask.prompt));
    if (state !== "done") article.append(make("span", `flag ${state === "failed" ? "failed" : "other"}`, WORDS[state] ?? state));
    else if (index.finishes[answer[FINISH]] === "length") article.append(make("span", "flag other", "Cut off at its longest"));
    if (answer[TEXT]) article.append(write(make(ask.structured ? "pre" : "p"), ask.structured ? pretty(answer[TEXT]) : answer[TEXT]));
    if (answer[ERROR]) article.append(write(make("p", "bad"), answer[ERROR]));
    const model = index.models[answer[MODEL]];
    const said = [
      KINDS[index.kinds[answer[KIND]]],
      answer[TOKENS] ? `${count(answer[TOKENS])} tokens` : "",
      answer[SECONDS] ? `${answer[SECONDS]} s` : "",
      index.hosts[answer[HOST]],
      model ? `model ${model.slice(0, 12)}` : "",
    ];
    article.append(make("footer", "", said.filter(Boolean).join(" · ")));
    return article;
  }

  function pretty(text) {
    try {
      return JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      return text;
    }
  }

  function keyInLarge(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "Tab") trap(event);
  }

  // The browser's own trap lets the focus out to its bars; here it goes round.
  function trap(event) {
    const stops = [...large.querySelectorAll("button:not(:disabled), a[href]")];
    const last = stops.at(event.shiftKey ? 0 : -1), on = document.activeElement;
    if (on !== last && (!event.shiftKey || stops.includes(on))) return;
    event.preventDefault();
    stops.at(event.shiftKey ? -1 : 0).focus();
  }

  // On paper: what is in view and what follows it, or the picture that is large.

  async function printPage() {
    const places = printedPlaces();
    places.forEach((place) => pictures[shown[place]]?.[SMALL] && smallOf(shown[place]));
    await loadSmall();
    fillPrinted();
    await Promise.all([...$("printed").querySelectorAll("img")].map((image) => image.decode().catch(() => {})));
    window.print();
  }

  function printedPlaces() {
    if (large.open) return [active];
    const first = Math.floor(Math.max(0, at) / row) * columns;
    return Array.from({ length: Math.min(MOST_TILES, shown.length - first) }, (_, n) => first + n);
  }

  function fillPrinted() {
    const places = printedPlaces();
    const said = `Pictures ${count(places[0] + 1)} to ${count(places.at(-1) + 1)} of ${count(shown.length)}`;
    const entries = places.filter((place) => pictures[shown[place]]).map((place) => {
      const picture = pictures[shown[place]], entry = make("div"), image = make("img");
      image.src = picture[SMALL] ? smallOf(shown[place]) : "";
      if (image.getAttribute("src")) entry.append(image);
      for (const answer of picture[ANSWERS]) {
        if (picture[ANSWERS].length > 1) entry.append(make("small", "", askOf(answer).prompt));
        entry.append(make("p", "", answer[TEXT] || answer[ERROR]));
      }
      entry.append(make("small", "", nameOf(picture)));
      return entry;
    });
    tiles.clear();
    paper.replaceChildren();
    $("printed").replaceChildren(make("h1", "", index.title), make("p", "", places.length ? said : "No picture fits"), ...entries);
  }

  // Colours

  const LOOKS = ["system", "light", "dark"];
  const ICONS = { system: "M10 3a7 7 0 1 0 0 14zM10 3a7 7 0 0 1 0 14", light: "M10 6.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7M10 1.5v2m0 13v2M1.5 10h2m13 0h2M4 4l1.4 1.4m9.2 9.2L16 16M4 16l1.4-1.4m9.2-9.2L16 4", dark: "M16.5 12A7 7 0 0 1 8 3.5a7 7 0 1 0 8.5 8.5z" };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let look = "system";

  function paint() {
    document.documentElement.dataset.theme = look === "dark" || (look === "system" && dark.matches) ? "dark" : "light";
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.setAttribute("viewBox", "0 0 20 20");
    svg.setAttribute("aria-hidden", "true");
    path.setAttribute("d", ICONS[look]);
    svg.append(path);
    $("theme").replaceChildren(svg);
    $("theme").setAttribute("aria-label", `Colours: ${look === "system" ? "as the system" : look}`);
  }

  // A browser may keep nothing for pages from `file://`.
  function remember(value) {
    try {
      if (value) localStorage.setItem("look", value);
      return localStorage.getItem("look");
    } catch {
      return null;
    }
  }

  // Controls

  function options(select, list) {
    select.replaceChildren(...list.map(([value, text]) => new Option(text, value)));
    select.closest("label").hidden = list.length < 2;
  }

  function controls() {
    const counted = (name) => index[name].map((value, n) => [value, index.counts[name][n]]).filter(([value]) => value);
    const states = counted("states"), cut = counted("finishes").filter(([value]) => value === "length");
    if (states.length + cut.length > 1) chips([["", index.pictures], ...states, ...cut]);
    options($("ask"), index.asks.length > MOST_ASKS ? [] : index.asks.map((ask, n) => [n, ask.prompt.slice(0, 80)]));
    options($("kind"), [["", "any error"], ...counted("kinds").map(([kind, number]) => [kind, `${KINDS[kind] ?? kind} (${count(number)})`])]);
    const hosts = counted("hosts");
    options($("host"), hosts.length < 2 ? [] : [["", "all hosts"], ...hosts.map(([host]) => [host, host])]);
  }

  function chips(states) {
    $("states").replaceChildren(...states.map(([state, number]) => {
      const chip = make("button", "", state === "" ? "All" : state === "length" ? "Cut off" : WORDS[state] ?? state);
      chip.type = "button";
      chip.append(make("span", "", count(number)));
      chip.setAttribute("aria-pressed", String(state === wanted.state));
      chip.onclick = () => setState(state);
      chip.state = state;
      return chip;
    }));
  }

  function setState(state) {
    wanted.state = state;
    for (const chip of $("states").children) chip.setAttribute("aria-pressed", String(chip.state === state));
    chooseAnew();
  }

  function showAll() {
    $("search").value = $("kind").value = $("host").value = "";
    Object.assign(wanted, { words: [], kind: "", host: "" });
    setState("");
    grid.focus();
  }

  const search = later(90, () => {
    wanted.words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    chooseAnew();
  });

  function keyOnPage(event) {
    const typing = event.target.matches("input, select");
    if ((event.ctrlKey || event.metaKey) && event.key === "p") {
      event.preventDefault();
      printPage();
    } else if (event.key === "/" && !typing && !large.open) {
      event.preventDefault();
      $("search").select();
    } else if (event.key === "Escape" && event.target === $("search")) {
      $("search").value = "";
      search();
      grid.focus();
    } else if (["ArrowDown", "Enter"].includes(event.key) && event.target === $("search")) {
      event.preventDefault();
      grid.focus();
    }
  }

  function listen() {
    grid.addEventListener("scroll", scrolled, { passive: true });
    grid.addEventListener("keydown", moved);
    grid.addEventListener("click", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) open(Number(tile.id.slice(5)));
    });
    large.addEventListener("keydown", keyInLarge);
    large.addEventListener("close", () => grid.focus());
    large.addEventListener("click", (event) => event.target === large && large.close());
    $("previous").onclick = () => step(-1);
    $("next").onclick = () => step(1);
    $("close").onclick = () => large.close();
    $("all").onclick = showAll;
    $("search").addEventListener("input", search);
    for (const id of ["kind", "host", "order"]) {
      $(id).onchange = () => {
        wanted[id] = $(id).value;
        chooseAnew();
      };
    }
    $("ask").onchange = () => {
      wanted.ask = Number($("ask").value);
      chooseAnew();
    };
    $("theme").onclick = () => {
      look = LOOKS[(LOOKS.indexOf(look) + 1) % 3];
      remember(look);
      paint();
    };
    dark.addEventListener("change", paint);
    document.addEventListener("keydown", keyOnPage);
    window.addEventListener("beforeprint", fillPrinted);
    window.addEventListener("afterprint", () => {
      $("printed").replaceChildren();
      draw();
    });
    new ResizeObserver(() => index && measure()).observe(grid);
  }

  const soonChoose = later(120, choose);

  look = LOOKS.includes(remember()) ? remember() : "system";
  paint();
  listen();

  return {
    // Called by data/index.js.
    index(document_) {
      index = document_;
      pictures = new Array(index.pictures);
      document.title = $("title").textContent = index.title;
      controls();
      choose();
      loadAnswers().then(choose);
    },
    // Called by data/0001.js and those after it.
    pictures(number, list) {
      const begin = (number - 1) * index.shard;
      list.forEach((picture, n) => (pictures[begin + n] = picture));
      loaded++;
      if (isPlain()) tell(), draw();
      else soonChoose();
    },
    // Called by thumbnails/0/0001.js and those after it.
    thumbnails(number, list) {
      small.set(number, list);
    },
  };
})();
