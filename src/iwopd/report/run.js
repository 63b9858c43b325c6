"use strict";
/* Responses token by token. Everything comes from this page: an index as JSON, and for each response base64 of deflated
   planes of bytes (iwopd/report/tokens.py says how they are laid out). Texts are only ever set as text. */
(() => {
  const element = (id) => document.getElementById(id);
  const source = element("responses-index");
  if (!source) return;
  const index = JSON.parse(source.textContent);
  const controls = element("controls"), AHEAD = "900px", CHUNK = 512;
  const chosen = (name) => controls.elements[name].value;

  // ------------------------------------------------------------------------------------------ numbers

  async function inflated(number) {
    const packed = Uint8Array.from(atob(element(`response-${number}`).textContent), (each) => each.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const known = new Map();
  function unpacked(number) {
    if (!known.has(number)) known.set(number, unpack(number));
    return known.get(number);
  }

  async function unpack(number) {
    const about = index.responses[number], bytes = await inflated(number), n = about.tokens;
    let place = 0;
    const planes = (count) => {
      const values = new Uint32Array(n);
      for (let plane = 0; plane < count; plane++)
        for (let i = 0; i < n; i++) values[i] = values[i] * 256 + bytes[place++];
      return values;
    };
    const signed = (value) => (value % 2 ? -(value + 1) / 2 : value / 2);
    const { fine, coarse, bend, missing } = index.nats;
    const nats = (code) => (code === missing ? NaN : -(code < bend * fine ? code / fine : bend + (code - bend * fine) / coarse));
    const ids = planes(3), student = Float64Array.from(planes(2), nats), teacher = Float64Array.from(planes(2), nats);
    const advantage = about.ownAdvantages
      ? Float64Array.from(planes(3), (code) => signed(code) / fine)
      : student.map((value, i) => teacher[i] - value);
    const codes = [];
    const weights = about.weights.map((kept, scheme) => {
      if (!kept) return null;
      if (kept.palette) {
        if (kept.palette.length === 1) return new Float64Array(n).fill(kept.palette[0]);
        return Float64Array.from(planes(1), (code) => kept.palette[code]);
      }
      if ("as" in kept) codes[scheme] = kept.mirrored ? codes[kept.as].slice().reverse() : codes[kept.as];
      else {
        let running = 0;
        codes[scheme] = Float64Array.from(planes(2), (code) => (running += signed(code)));
      }
      return codes[scheme].map((code) => kept.low + ((kept.high - kept.low) * code) / kept.levels);
    });
    return { about, n, ids, student, teacher, advantage, weights };
  }

  // ------------------------------------------------------------------------------------------ colours

  const colouring = {
    advantage: { name: "|A_t|", unit: " nats", of: (data) => data.advantage.map(Math.abs) },
    weight: { name: "weight", unit: "", of: (data, weights) => weights },
    both: { name: "weight × |A_t|", unit: " nats", of: (data, weights) => weights && weights.map((w, i) => Math.abs(w * data.advantage[i])) },
  };

  /* From a value to 0 … 1. Advantages have a few large values: square roots, up to what 99 % stay below. */
  function scaleOf(arrays, kind) {
    const all = arrays.filter(Boolean).flatMap((values) => Array.from(values).filter(Number.isFinite));
    all.sort((a, b) => a - b);
    if (!all.length) return { low: 0, high: 1, shade: () => 0 };
    if (kind === "weight") {
      const low = all[0], high = all[all.length - 1];
      return { low, high, shade: (value) => (high - low < 1e-9 ? 0.5 : (value - low) / (high - low)) };
    }
    const high = Math.max(all[Math.floor(0.99 * (all.length - 1))], 1e-3);
    return { low: 0, high, root: true, shade: (value) => Math.sqrt(Math.min(1, value / high)) };
  }

  function short(value) {
    if (!Number.isFinite(value)) return "–";
    const text = value.toFixed(Math.abs(value) < 0.01 ? 4 : 3);
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
  }

  // ------------------------------------------------------------------------------------------ one response

  class Pane {
    constructor(root) {
      this.root = root;
      for (const name of ["title", "verdict", "overview", "tokens", "readout"])
        this[name] = root.querySelector(`.${name}`);
      this.observer = new IntersectionObserver(
        (entries) => entries.forEach((entry) => entry.isIntersecting && this.fill(entry.target)),
        { root: this.tokens, rootMargin: AHEAD });
      this.tokens.addEventListener("pointerover", (event) => this.touched(event));
      this.tokens.addEventListener("click", (event) => this.touched(event));
      this.tokens.addEventListener("keydown", (event) => this.pressed(event));
      this.tokens.addEventListener("focus", () => this.at < 0 && this.go(0));
      this.overview.addEventListener("click", (event) => {
        const box = this.overview.getBoundingClientRect();
        this.go(Math.floor(((event.clientX - box.left) / box.width) * this.n), true);
      });
      new ResizeObserver(() => this.sketch()).observe(this.overview);
      this.at = -1;
      this.n = 0;
    }

    show(data, label) {
      this.data = data;
      this.n = data ? data.n : 0;
      this.at = -1;
      this.title.textContent = label;
      this.observer.disconnect();
      this.tokens.replaceChildren();
      this.tokens.scrollTop = 0;
      this.readout.textContent = data ? "Point at a token, or move with the arrow keys." : "";
      if (!data) {
        this.verdict.textContent = "no response to this problem here";
        this.tokens.setAttribute("aria-label", "no response");
        return;
      }
      const { correct, cut } = data.about;
      this.verdict.textContent = `${correct ? "✓ right" : "✗ wrong"}, ${cut ? "cut off after" : "ended after"} ${this.n.toLocaleString("en")} tokens`;
      this.verdict.className = `verdict ${correct ? "right" : "wrong"}`;
      this.tokens.setAttribute("aria-label", `Response, ${label}: ${this.n} tokens; arrow keys move from token to token`);
      const columns = Math.max(20, this.tokens.clientWidth / 8.5);
      for (let start = 0; start < this.n; ) {
        const stop = this.end(start), chunk = document.createElement("div");
        let size = 0;
        for (let i = start; i < stop; i++) size += index.vocabulary[data.ids[i]].length;
        chunk.className = "chunk";
        chunk.dataset.start = start;
        chunk.dataset.stop = stop;
        chunk.style.minHeight = `${Math.ceil(size / columns) * 1.6}em`;
        this.tokens.append(chunk);
        this.observer.observe(chunk);
        start = stop;
      }
      if (this.tokens.firstChild) this.fill(this.tokens.firstChild);
    }

    /* A chunk ends where a line does, if it can. */
    end(start) {
      const most = Math.min(this.n, start + CHUNK);
      if (most === this.n) return most;
      for (let i = most; i > start + CHUNK / 2; i--)
        if (index.vocabulary[this.data.ids[i - 1]].endsWith("\n")) return i;
      return most;
    }

    fill(chunk) {
      if (chunk.firstChild) return;
      const start = Number(chunk.dataset.start), stop = Number(chunk.dataset.stop), parts = document.createDocumentFragment();
      for (let i = start; i < stop; i++) {
        const span = document.createElement("span"), text = index.vocabulary[this.data.ids[i]];
        span.className = "token";
        span.dataset.i = i;
        span.textContent = text === "" ? "▯" : text.replace(/\n/g, "⏎\n");
        parts.append(span);
      }
      chunk.append(parts);
      chunk.style.minHeight = "";
      this.paint(chunk);
    }

    colour(values, scale, kind) {
      this.values = values;
      this.scale = scale;
      this.tokens.dataset.kind = kind;
      this.overview.dataset.kind = kind;
      for (const chunk of this.tokens.children) if (chunk.firstChild) this.paint(chunk);
      this.sketch();
      if (this.at >= 0) this.tell();
    }

    paint(chunk) {
      if (!this.values) return chunk.childNodes.forEach((span) => span.style.removeProperty("--shade"));
      for (const span of chunk.childNodes) {
        const value = this.values[span.dataset.i];
        span.style.setProperty("--shade", Number.isFinite(value) ? `${Math.round(100 * this.scale.shade(value))}%` : "0%");
      }
    }

    /* The whole response on one strip: of each part the largest value. */
    sketch() {
      const box = this.overview.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
      const width = (this.overview.width = Math.max(1, Math.round(box.width * ratio)));
      const height = (this.overview.height = Math.max(1, Math.round(box.height * ratio)));
      const ink = this.overview.getContext("2d");
      ink.clearRect(0, 0, width, height);
      if (!this.n || !this.values) return;
      ink.fillStyle = getComputedStyle(this.overview).color;
      const bars = Math.min(width, this.n);
      for (let bar = 0; bar < bars; bar++) {
        let most = 0;
        const stop = Math.max(Math.ceil(((bar + 1) * this.n) / bars), Math.floor((bar * this.n) / bars) + 1);
        for (let i = Math.floor((bar * this.n) / bars); i < Math.min(stop, this.n); i++) {
          const shade = this.scale.shade(this.values[i]);
          if (shade > most) most = shade;
        }
        ink.fillRect((bar * width) / bars, height * (1 - most), Math.max(1, width / bars), height * most);
      }
    }

    span(i) {
      const chunks = this.tokens.children;
      let low = 0, high = chunks.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (Number(chunks[middle].dataset.start) <= i) low = middle;
        else high = middle - 1;
      }
      for (const near of [low - 1, low, low + 1]) if (chunks[near]) this.fill(chunks[near]); // their heights are known then
      return chunks[low].childNodes[i - Number(chunks[low].dataset.start)];
    }

    go(i, centre) {
      if (!this.n) return;
      i = Math.max(0, Math.min(this.n - 1, i));
      this.tokens.querySelector(".token.here")?.classList.remove("here");
      const span = this.span(i);
      span.classList.add("here");
      this.at = i;
      const top = span.offsetTop, box = this.tokens; // which is what the offset counts from
      if (centre) box.scrollTop = top - box.clientHeight / 2;
      else if (top < box.scrollTop) box.scrollTop = top - 4;
      else if (top + span.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + span.offsetHeight - box.clientHeight + 4;
      this.tell();
    }

    tell() {
      const i = this.at, data = this.data, scheme = view.scheme(), weights = data.weights[scheme];
      const weight = weights ? weights[i] : NaN, advantage = data.advantage[i];
      const facts = [
        ["token", `${(i + 1).toLocaleString("en")} of ${this.n.toLocaleString("en")}, ${JSON.stringify(index.vocabulary[data.ids[i]])}`],
        ["student log π_θ", short(data.student[i])],
        ["teacher log π_T", short(data.teacher[i])],
        ["A_t", `${short(advantage)} nats`],
        [`weight, ${index.schemes[scheme] ?? "none"}`, short(weight)],
        ["weight × A_t", `${short(weight * advantage)} nats`],
      ];
      this.readout.replaceChildren(...facts.map(([name, value]) => {
        const part = document.createElement("span"), label = document.createElement("span");
        part.className = "fact";
        label.className = "label";
        label.textContent = `${name} `;
        part.append(label, value);
        return part;
      }));
    }

    touched(event) {
      const span = event.target.closest(".token");
      if (!span) return;
      this.tokens.querySelector(".token.here")?.classList.remove("here");
      span.classList.add("here");
      this.at = Number(span.dataset.i);
      this.tell();
    }

    pressed(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.n) return;
      const to = { ArrowRight: this.at + 1, ArrowLeft: this.at - 1, Home: 0, End: this.n - 1, PageDown: this.at + 100, PageUp: this.at - 100 }[event.key]
        ?? (event.key === "ArrowDown" || event.key === "ArrowUp" ? this.line(event.key === "ArrowDown" ? 1 : -1) : null)
        ?? (event.key === "n" ? this.outstanding() : null);
      if (to === null) return;
      event.preventDefault();
      this.go(to);
    }

    /* The token in the line above or below that is nearest. */
    line(direction) {
      const here = this.span(Math.max(0, this.at)).getBoundingClientRect();
      let best = null, top = null;
      for (let i = this.at + direction; i >= 0 && i < this.n && Math.abs(i - this.at) < 2 * CHUNK; i += direction) {
        const box = this.span(i).getClientRects()[0];
        if (!box || Math.abs(box.top - here.top) < 4) continue;
        top ??= box.top;
        if (Math.abs(box.top - top) > 4) break;
        const distance = Math.abs(box.left - here.left);
        if (best === null || distance < best.distance) best = { i, distance };
      }
      return best ? best.i : this.at + direction;
    }

    /* The next token that is among the hundredth of the largest values, from the start again after the last. */
    outstanding() {
      if (!this.values) return null;
      const least = Array.from(this.values).filter(Number.isFinite).sort((a, b) => b - a)[Math.max(0, Math.ceil(this.n / 100) - 1)];
      for (let step = 1; step <= this.n; step++) {
        const i = (this.at + step) % this.n;
        if (this.values[i] >= least) return i;
      }
      return null;
    }
  }

  // ------------------------------------------------------------------------------------------ the whole

  const view = {
    panes: [...document.querySelectorAll(".pane")].map((root) => new Pane(root)),
    turn: 0,
    scheme: () => Number(chosen("scheme")),
    columns: () => (controls.elements.left ? [Number(chosen("left")), Number(chosen("right"))] : [0]),

    listed() {
      const columns = this.columns(), kind = chosen("filter");
      return index.problems.map((_, number) => number).filter((number) => {
        const places = index.problems[number].responses;
        if (kind === "all") return columns.some((column) => places[column] !== null);
        const about = index.responses[places[columns.at(-1)]];
        return about !== undefined && (kind === "cut" ? about.cut : about.correct === (kind === "right"));
      });
    },

    list() {
      const select = controls.elements.problem, before = select.value, numbers = this.listed();
      const verdict = (place) => (place === null ? "–" : (index.responses[place].correct ? "right" : "wrong") + (index.responses[place].cut ? ", cut" : ""));
      select.replaceChildren(...numbers.map((number) => {
        const problem = index.problems[number], option = document.createElement("option");
        option.value = number;
        option.textContent = `${problem.name}: ${this.columns().map((column) => verdict(problem.responses[column])).join(" → ")}`;
        return option;
      }));
      if (numbers.includes(Number(before)) && before !== "") select.value = before;
      element("count").textContent = `${numbers.length} of ${index.problems.length} problems`;
      for (const name of ["problem", "previous", "next"]) controls.elements[name].disabled = !numbers.length;
    },

    async show() {
      const turn = ++this.turn, select = controls.elements.problem, columns = this.columns();
      const problem = select.value === "" ? null : index.problems[Number(select.value)];
      element("prompt").textContent = problem ? problem.prompt : "";
      element("answer").textContent = problem && problem.answer !== null ? `reference answer: ${problem.answer}` : "";
      const places = columns.map((column) => (problem ? problem.responses[column] : null));
      const found = await Promise.all(places.map((place) => (place === null ? null : unpacked(place))));
      if (turn !== this.turn) return;
      found.forEach((data, side) => this.panes[side].show(data, index.columns[columns[side]]));
      this.found = found;
      this.colour();
    },

    colour() {
      const kind = chosen("colour"), scheme = this.scheme(), how = colouring[kind];
      const arrays = this.found.map((data) => data && how.of(data, data.weights[scheme]));
      const scale = scaleOf(arrays, kind);
      arrays.forEach((values, side) => this.panes[side].colour(values, scale, kind));
      const bar = element("scale");
      bar.dataset.kind = kind;
      element("scale-name").textContent = kind === "advantage" ? how.name : `${how.name}, ${index.schemes[scheme]}`;
      element("scale-low").textContent = scale.low === 0 ? "0" : short(scale.low);
      element("scale-high").textContent = (scale.root ? "≥ " : "") + short(scale.high) + how.unit;
    },

    move(by) {
      const select = controls.elements.problem, count = select.options.length;
      if (!count) return;
      select.selectedIndex = (select.selectedIndex + by + count) % count;
      this.show();
    },
  };

  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("change", (event) => {
    if (["colour", "scheme"].includes(event.target.name)) view.colour();
    else {
      if (event.target.name !== "problem") view.list();
      view.show();
    }
  });
  controls.elements.previous.addEventListener("click", () => view.move(-1));
  controls.elements.next.addEventListener("click", () => view.move(1));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view.panes.forEach((pane) => pane.sketch()));

  if (!("DecompressionStream" in window)) {
    element("count").textContent = "This browser is too old to show them: it has no DecompressionStream.";
    return;
  }
  view.list();
  view.show().then(() => {
    performance.mark("responses-shown");
    document.documentElement.dataset.ready = "true";
  });
})();
