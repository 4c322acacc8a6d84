// The gallery: a bar to search with, the one or two effects that are chosen, and the grid of all.
import { shareCanvas } from "../canvas.js";
import { element, isPages } from "../element.js";
import { t } from "../words.js";
import { ALL, CATEGORY, FAVOURITES, Grid, RECENT } from "./grid.js";
import { isKept, noteUse, onChange, pairs, remember, togglePair } from "./memory.js";

/** @typedef {import("./catalogue.js").Effect} Effect */
/**
 * @typedef {{first: string, second: string | null, linked?: boolean, thenLinked?: boolean}} Choice
 * `linked`, `thenLinked`: the first, or the second, comes by a link, and is not the gallery's to choose.
 */

/** @typedef {{size?: string, seed?: string, mine?: string}} View what hides no effect: two nodes may have one place */

const SIZES = { min: 56, max: 192, start: 88 };

/**
 * A number below `count` that depends on the seed alone (mulberry32).
 * @param {number} seed @param {number} count
 */
export function drawn(seed, count) {
  let mixed = (seed + 0x6d2b79f5) | 0;
  mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
  return ((mixed ^ (mixed >>> 14)) >>> 0) % count;
}

export class Gallery {
  /**
   * @param {object} told
   * @param {(choice: Choice) => void} told.onChoice of every choice the user makes
   * @param {(picture: File) => void} told.onPicture of a picture to show all effects on
   */
  constructor({ onChoice, onPicture }) {
    this.onChoice = onChoice;
    /** Whose effects are shown, for those who ask. */
    this.file = "";
    /** @type {Effect[]} */
    this.effects = [];
    /** @type {Choice} */
    this.choice = { first: "", second: null };
    this.choosesSecond = false;
    this.grid = new Grid({ onPick: (name, asSecond) => this.#pick(name, asSecond), onLost: () => this.search.focus() });
    this.root = element("div", "", { class: "cl-picker" });
    this.search = element("input", "", { class: "cl-search", type: "search", placeholder: t("Search effects"), "aria-label": t("Search effects") });
    this.search.addEventListener("input", () => this.#filter());
    this.category = element("select", "", { class: "cl-category", "aria-label": t("Category") });
    this.category.addEventListener("change", () => this.#filter());
    this.size = element("input", "", {
      class: "cl-size",
      type: "range",
      min: String(SIZES.min),
      max: String(SIZES.max),
      value: String(SIZES.start),
      "aria-label": t("Size of the pictures"),
    });
    this.size.addEventListener("input", () => this.#resize());
    const random = element("button", "", { class: "cl-random", type: "button", title: t("Pick one at random") });
    random.textContent = t("random");
    random.addEventListener("click", () => this.#random());
    this.seed = element("input", "", { class: "cl-seed", type: "number", value: "0", "aria-label": t("Seed of the random pick") });
    this.seed.title = t("The same seed picks the same among what is shown; it counts up");
    const bar = element("div", "", { class: "cl-bar" });
    this.mine = element("button", "", { class: "cl-mine", type: "button", "aria-pressed": "false", title: t("Show the effects on your own picture") });
    this.mine.textContent = t("mine");
    this.mine.hidden = true;
    this.mine.addEventListener("click", () => {
      this.mine.setAttribute("aria-pressed", String(this.mine.getAttribute("aria-pressed") !== "true"));
      this.#filter();
    });
    this.pairs = element("select", "", { class: "cl-pairs", "aria-label": t("Kept pairs") });
    this.pairs.addEventListener("change", () => {
      const [first, second] = pairs()[Number(this.pairs.value)];
      this.#set({ first, second });
    });
    const picture = element("input", "", { type: "file", accept: "image/*", hidden: "" });
    picture.addEventListener("change", () => {
      if (picture.files?.length) onPicture(picture.files[0]);
      picture.value = ""; // the same one may be chosen again
    });
    const use = element("button", t("use my image"), { class: "cl-use", type: "button" });
    use.title = t("Draw all effects on a picture of yours; it takes as long as running each once");
    use.addEventListener("click", () => picture.click());
    bar.append(this.search, this.category, this.pairs, this.size, random, this.seed, use, picture, this.mine);

    this.chosen = element("div", "", { class: "cl-chosen", role: "group", "aria-label": t("Chosen effects") });
    this.message = element("div", "", { class: "cl-message", role: "status" });
    this.news = element("div", "", { class: "cl-news", role: "status" });
    this.count = element("div", "", { class: "cl-unseen", role: "status" });
    this.root.append(bar, this.chosen, this.message, this.news, this.count, this.grid.root);
    shareCanvas(this.root);
    this.root.addEventListener("keydown", (event) => {
      if (isPages(event)) return;
      event.stopPropagation(); // Delete is for nodes
      if (event.key === "Escape" && !event.isComposing) this.#leave();
    });
    for (const kind of ["input", "change", "click"]) this.root.addEventListener(kind, () => this.#note());
    /** @type {View} */
    this.view = {};
    this.#resize();
    this.stop = () => {};
  }

  /**
   * The node has a place in a graph: hear of what is kept.
   * @param {View} view how the gallery was looked at there; what changes is noted in it
   */
  attend(view) {
    this.view = view;
    this.size.value = view.size ?? String(SIZES.start);
    this.seed.value = view.seed ?? "0";
    this.mine.setAttribute("aria-pressed", view.mine ?? "false");
    this.#resize();
    this.stop();
    this.stop = onChange(() => {
      this.#filter();
      this.#mark();
    });
    this.root.classList.remove("cl-retired");
    remember().catch(() => {}); // asked again when there is something to keep
  }

  #note() {
    this.view.size = this.size.value;
    this.view.seed = this.seed.value;
    this.view.mine = this.mine.getAttribute("aria-pressed") ?? "false";
  }

  /** Hear of nothing any more. The page may leave the element of a node that moves into a subgraph. */
  retire() {
    this.stop();
    this.root.classList.add("cl-retired");
  }

  /** @param {Effect[]} effects */
  show(effects) {
    this.message.textContent = "";
    if (JSON.stringify(effects) === JSON.stringify(this.effects)) return;
    this.effects = effects;
    const categories = [...new Set(effects.map((effect) => effect.category).filter(Boolean))].sort();
    const found = this.category.value;
    this.category.replaceChildren(
      ...[ALL, FAVOURITES, RECENT].map((kind) => element("option", t(kind), { value: kind })),
      ...categories.map((name) => element("option", name, { value: CATEGORY + name })),
    );
    this.category.value = found;
    if (this.category.selectedIndex < 0) this.category.value = ALL;
    this.mine.hidden = !effects.some((effect) => effect.own);
    this.grid.hold(effects, this.#asked());
    this.#tellCount();
    this.#mark();
  }

  /** Say why there is nothing to show; the choice stays as it is. @param {string} text */
  complain(text) {
    this.effects = [];
    this.grid.hold([], this.#asked());
    this.message.textContent = text;
    this.#mark();
  }

  /** Say how far the pictures on the user's own are. @param {string} text */
  tell(text) {
    this.news.textContent = text;
  }

  /** Show the effects on the user's own picture, as soon as there are some. */
  showMine() {
    this.mine.setAttribute("aria-pressed", "true");
    this.#note();
    this.#filter();
  }

  /** Show a choice that was made elsewhere. @param {Choice} choice */
  choose(choice) {
    if (JSON.stringify(choice) === JSON.stringify(this.choice)) return;
    this.choice = choice;
    this.#mark();
  }

  /** Those pairs whose effects are both here; there is no list without any. */
  #listPairs() {
    const titles = new Map(this.effects.map((effect) => [effect.name, effect.title]));
    const choices = pairs().flatMap(([first, second], at) => {
      if (!titles.has(first) || !titles.has(second)) return [];
      const option = element("option", `${titles.get(first)} → ${titles.get(second)}`, { value: String(at) });
      option.selected = first === this.choice.first && second === this.choice.second;
      return [option];
    });
    this.pairs.replaceChildren(element("option", t("pairs"), { value: "", hidden: "" }), ...choices);
    this.pairs.hidden = !choices.length;
  }

  /** @param {string} name @param {boolean} [asSecond] */
  #pick(name, asSecond = false) {
    const { first, second, linked, thenLinked } = this.choice;
    if (asSecond && thenLinked) return;
    // no effect after itself, as far as the first is known
    const isSecond = (asSecond || this.choosesSecond) && (linked || (first && first !== name));
    this.choosesSecond = false;
    if (isSecond) this.#set({ first, second: name });
    else if (!linked) this.#set({ first: name, second: second === name ? null : second });
  }

  /** @param {Choice} choice */
  #set(choice) {
    this.choice = { ...this.choice, ...choice };
    noteUse([choice.first, choice.second ?? ""].filter(Boolean));
    this.#mark();
    this.onChoice(choice);
  }

  /** Escape: out of a search or of the second pick, then back to the page. */
  #leave() {
    if (this.search.value) {
      this.search.value = "";
      this.#filter();
    } else if (this.choosesSecond) {
      this.choosesSecond = false;
      this.#mark();
    } else {
      /** @type {HTMLElement | null} */ (document.activeElement)?.blur();
    }
  }

  /** Pick by the seed among the effects that are shown, and count the seed up. */
  #random() {
    const { shown } = this.grid;
    const seed = Number(this.seed.value) || 0;
    if (!shown.length) return;
    this.#pick(shown[drawn(seed, shown.length)]);
    this.seed.value = String(seed + 1);
  }

  /** What the bar asks for. */
  #asked() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const mine = !this.mine.hidden && this.mine.getAttribute("aria-pressed") === "true";
    return { kind: this.category.value || ALL, words, mine };
  }

  #filter() {
    this.grid.show(this.#asked());
    this.#tellCount();
  }

  #tellCount() {
    if (this.effects.length) this.count.textContent = t("effects shown: {n}", { n: this.grid.shown.length });
  }

  #mark() {
    const { first, second, linked, thenLinked } = this.choice;
    if (thenLinked) this.choosesSecond = false;
    const had = this.chosen.contains(document.activeElement) ? document.activeElement?.className : null;
    this.grid.mark(first, second);
    const drop = () => this.#set({ first, second: null });
    this.chosen.replaceChildren(
      linked ? element("span", t("The effect comes by a link.")) : this.#chip(first, t("Effect"), null),
    );
    if (thenLinked) {
      this.chosen.append(element("span", t("The second effect comes by a link.")));
    } else if (second && linked) {
      this.chosen.append(this.#chip(second, t("Then"), drop));
    } else if (second) {
      const swap = element("button", "⇄", { class: "cl-swap", type: "button", title: t("Swap the two") });
      swap.setAttribute("aria-label", t("Swap the two effects"));
      swap.addEventListener("click", () => this.#set({ first: second, second: first }));
      const kept = isKept(first, second);
      const keep = element("button", kept ? "★" : "☆", { class: "cl-keep", type: "button", "aria-pressed": String(kept) });
      keep.setAttribute("aria-label", t("Keep this pair"));
      keep.title = t("Keep this pair");
      keep.addEventListener("click", () => togglePair(first, second));
      this.chosen.append(swap, this.#chip(second, t("Then"), drop), keep);
    } else {
      const add = element("button", "", { class: "cl-add", type: "button", "aria-pressed": String(this.choosesSecond) });
      add.textContent = this.choosesSecond ? t("now pick the second") : t("+ then");
      add.title = t("A second effect on top of the first (or Shift and click)");
      add.addEventListener("click", () => {
        this.choosesSecond = !this.choosesSecond;
        this.#mark();
      });
      this.chosen.append(add);
    }
    if (linked || thenLinked) this.pairs.hidden = true; // it would choose both
    else this.#listPairs();
    if (had === null) return; // else the focus was on a button that is a new one now
    const buttons = [...this.chosen.querySelectorAll("button")];
    (buttons.find((one) => one.className === had) ?? buttons[0] ?? this.search).focus();
  }

  /** @param {string} name @param {string} role @param {(() => void) | null} drop */
  #chip(name, role, drop) {
    const effect = this.effects.find((one) => one.name === name);
    const missing = this.effects.length > 0 && !effect;
    const chip = element("span", "", { class: missing ? "cl-chip cl-missing" : "cl-chip" });
    const text = element("span", "", { class: "cl-chip-text" });
    text.textContent = missing ? t("{name} (not in this file)", { name }) : (effect?.title ?? name);
    text.title = role;
    chip.append(text);
    if (drop) {
      const button = element("button", "", { class: "cl-drop", type: "button", "aria-label": t("Remove {name}", { name }) });
      button.textContent = "✕";
      button.addEventListener("click", drop);
      chip.append(button);
    }
    return chip;
  }

  #resize() {
    this.root.style.setProperty("--cl-size", `${this.size.value}px`);
  }
}
