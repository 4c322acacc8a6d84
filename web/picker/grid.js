// The pictures of the gallery: which are shown, in which order, and their keys.
import { element, isPages } from "../element.js";
import { t } from "../words.js";
import { isFavourite, recent, toggleFavourite } from "./memory.js";

/** @typedef {import("./catalogue.js").Effect} Effect */
/**
 * Which effects to show (of the kind ALL, FAVOURITES, RECENT, or CATEGORY and a name; all words in their texts) and
 * whether on the user's own picture, where there is one.
 * @typedef {{kind: string, words: string[], mine: boolean}} Asked
 */

export const ALL = "all";
export const FAVOURITES = "favourites";
export const RECENT = "recent";
export const CATEGORY = "category "; // before a category's name, which a stranger chose

export class Grid {
  /**
   * @param {object} told
   * @param {(name: string, asSecond: boolean) => void} told.onPick of an effect that the user picks
   * @param {() => void} told.onLost where the effect that had the focus went, and all others with it
   */
  constructor({ onPick, onLost }) {
    this.onPick = onPick;
    this.onLost = onLost;
    /** @type {Effect[]} */
    this.effects = [];
    /** @type {Map<string, HTMLButtonElement>} */
    this.cells = new Map();
    this.root = element("div", "", {
      class: "cl-grid",
      role: "listbox",
      "aria-label": t("Effects"),
      "aria-multiselectable": "true",
      "aria-description": t("Enter picks, Shift and Enter picks the second, F marks a favourite"),
    });
    this.root.addEventListener("keydown", (event) => this.#key(event));
    this.root.addEventListener("click", (event) => this.#click(event));
    this.root.addEventListener("focusin", ({ target }) => {
      if (target !== this.root) this.#rove(/** @type {HTMLButtonElement} */ (target)); // a browser may focus what scrolls
    });
    this.blank = element("button", "", { class: "cl-cell", type: "button", role: "option", tabindex: "-1" });
    this.blank.append(
      element("img", "", { class: "cl-picture", loading: "lazy", alt: "", draggable: "false" }),
      element("span", "", { class: "cl-star", "aria-hidden": "true", title: t("Favourite (F)") }),
      element("span", "", { class: "cl-name" }),
    );
  }

  /** The names of the effects that are shown, in order. */
  get shown() {
    return this.#visible().map((cell) => cell.dataset.name ?? "");
  }

  /** Hold other effects. @param {Effect[]} effects @param {Asked} asked */
  hold(effects, asked) {
    this.#keepPlace(() => {
      this.effects = effects;
      this.cells.clear();
      this.root.replaceChildren(...effects.map((effect) => this.#cell(effect)));
      this.#sift(asked);
    });
  }

  /** Show others of those it holds, or on another picture. @param {Asked} asked */
  show(asked) {
    this.#keepPlace(() => this.#sift(asked));
  }

  /** Show which are chosen. @param {string} first @param {string | null} second */
  mark(first, second) {
    for (const [name, cell] of this.cells) {
      cell.classList.toggle("cl-first", name === first);
      cell.classList.toggle("cl-second", name === second);
      cell.setAttribute("aria-selected", String(name === first || name === second));
    }
  }

  /**
   * Change the grid. It stays scrolled, and the focus stays on its effect, or goes to the next one or is lost: never to
   * the page, where Delete would be for nodes.
   * @param {() => void} change
   */
  #keepPlace(change) {
    const { scrollTop } = this.root;
    const focused = this.#visible().findIndex((cell) => cell === document.activeElement);
    const name = this.#visible()[focused]?.dataset.name ?? "";
    change();
    if (scrollTop) this.root.scrollTop = scrollTop; // costs a layout
    if (focused < 0) return;
    const same = this.cells.get(name);
    const visible = this.#visible();
    const next = same && !same.hidden ? same : visible[Math.min(focused, visible.length - 1)];
    if (next) next.focus({ preventScroll: next === same });
    else this.onLost();
  }

  /** @param {HTMLButtonElement} cell @param {string | null | undefined} address */
  #picture(cell, address) {
    const picture = cell.querySelector("img");
    if (!picture) return;
    picture.classList.toggle("cl-none", !address);
    if (!address) picture.removeAttribute("src");
    else if (picture.getAttribute("src") !== address) picture.src = address;
  }

  /** @param {Effect} effect */
  #cell(effect) {
    const cell = /** @type {HTMLButtonElement} */ (this.blank.cloneNode(true)); // many are made at once
    cell.title = effect.prompt;
    cell.dataset.name = effect.name;
    /** @type {HTMLElement} */ (cell.lastChild).textContent = effect.title;
    this.cells.set(effect.name, cell);
    return cell;
  }

  #visible() {
    const cells = /** @type {HTMLButtonElement[]} */ ([...this.root.children]);
    return cells.filter((cell) => !cell.hidden);
  }

  /** @param {Asked} asked */
  #sift({ kind, words, mine }) {
    const lately = recent();
    const ordered = [...this.effects];
    if (kind === RECENT) ordered.sort((one, other) => lately.indexOf(one.name) - lately.indexOf(other.name));
    const cells = ordered.map((effect) => {
      const cell = /** @type {HTMLButtonElement} */ (this.cells.get(effect.name));
      const text = `${effect.name} ${effect.title} ${effect.category} ${effect.prompt}`.toLowerCase();
      const ofKind =
        kind === ALL ||
        (kind === FAVOURITES && isFavourite(effect.name)) ||
        (kind === RECENT && lately.includes(effect.name)) ||
        kind === CATEGORY + effect.category;
      cell.hidden = !ofKind || !words.every((word) => text.includes(word));
      cell.classList.toggle("cl-favourite", isFavourite(effect.name));
      if (isFavourite(effect.name)) cell.setAttribute("aria-description", t("favourite"));
      else cell.removeAttribute("aria-description");
      this.#picture(cell, (mine && effect.own) || effect.thumbnail);
      return cell;
    });
    if (cells.some((cell, at) => cell !== this.root.children[at])) this.root.append(...cells);
    const visible = this.#visible(); // the tab key finds one of them
    if (visible.length && !visible.some((cell) => cell.tabIndex === 0)) this.#rove(visible[0]);
  }

  /** One cell of the grid is in the tab order. @param {HTMLButtonElement} cell */
  #rove(cell) {
    for (const other of this.cells.values()) if (other !== cell && other.tabIndex === 0) other.tabIndex = -1;
    cell.tabIndex = 0;
  }

  /** @param {MouseEvent} event */
  #click(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    const name = /** @type {HTMLElement | null} */ (target.closest(".cl-cell"))?.dataset.name;
    if (!name) return;
    if (target.classList.contains("cl-star")) toggleFavourite(name);
    else this.onPick(name, event.shiftKey);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (isPages(event)) return;
    const visible = this.#visible();
    const at = visible.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
    if (at < 0) return;
    const top = visible[0].offsetTop;
    const columns = Math.max(1, visible.filter((cell) => cell.offsetTop === top).length);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
    const name = visible[at].dataset.name ?? "";
    if (event.key in steps) {
      visible[at + steps[/** @type {keyof typeof steps} */ (event.key)]]?.focus();
    } else if (event.key === "Home" || event.key === "End") {
      visible.at(event.key === "Home" ? 0 : -1)?.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      this.onPick(name, event.shiftKey);
    } else if (event.key.toLowerCase() === "f") {
      toggleFavourite(name);
    } else {
      return;
    }
    event.preventDefault();
  }
}
