// The collection browser: a list of files, and the chosen one opened below it.
import { api } from "../../../scripts/api.js";
import { changed, effectsOf, forget } from "../picker/catalogue.js";
import { element, isPages } from "../element.js";
import { t } from "../words.js";
import { Detail } from "./detail.js";

/** @typedef {import("./detail.js").File} File */

/** @param {number} bytes */
function sizeInWords(bytes) {
  return bytes < 2 ** 30 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : `${(bytes / 2 ** 30).toFixed(2)} GiB`;
}

/** @param {unknown} error */
function reason(error) {
  return String(error instanceof Error ? error.message : error);
}

export class Browser {
  constructor() {
    this.root = element("div", "", { class: "cl-browser" });
    /** @type {string | undefined} */
    this.chosen = undefined;
    /** @type {Detail | null} none while a file is read, or if it cannot be */
    this.detail = null;
    this.list = element("ul", "", { "aria-label": t("Collections") });
    this.message = element("div", "", { role: "status" });
    this.root.append(element("h3", t("Collections")), this.message, this.list);
    // Typing must not reach the canvas' shortcuts.
    this.root.addEventListener("keydown", (event) => isPages(event) || event.stopPropagation());
    this.again = () => this.load();
    this.relist = () => this.#list().catch(() => {}); // the old list stays
    this.guard = (/** @type {Event} */ event) => this.detail?.changed() && event.preventDefault();
    api.addEventListener("reconnected", this.again);
    api.addEventListener(/** @type {any} */ ("collectionlora.saved"), this.relist);
    window.addEventListener("beforeunload", this.guard);
    this.load();
  }

  remove() {
    api.removeEventListener("reconnected", this.again);
    api.removeEventListener(/** @type {any} */ ("collectionlora.saved"), this.relist);
    window.removeEventListener("beforeunload", this.guard);
  }

  /** Read the list anew; stays on the chosen file, or on `name`. @param {string} [name] */
  async load(name = this.chosen) {
    this.message.textContent = t("Reading the folders …");
    let files;
    try {
      files = await this.#list();
    } catch (error) {
      this.message.textContent = reason(error); // the old list stays
      return;
    }
    this.message.textContent = "";
    const again = files.find((file) => file.file === name);
    if (again && !this.detail?.changed()) await this.#open(again);
  }

  /** Show the files that there are. @returns {Promise<File[]>} */
  async #list() {
    const response = await api.fetchApi("/collectionlora/collections");
    if (!response.ok) throw new Error(response.statusText);
    /** @type {File[]} */
    const files = await response.json();
    this.list.replaceChildren(...files.map((file) => this.#line(file)));
    this.#mark();
    return files;
  }

  /** @param {File} file */
  #line(file) {
    const button = element("button", "", { type: "button" });
    button.dataset.file = file.file;
    const facts = t("{effects} effects, {size}", { effects: file.effects, size: sizeInWords(file.bytes) });
    button.append(element("span", file.file, { class: "cl-file" }), element("span", facts, { class: "cl-facts" }));
    button.addEventListener("click", () => {
      if (this.mayClose()) this.#open(file);
    });
    const line = element("li");
    line.append(button);
    return line;
  }

  /** Show a file, as it is on the disk. @param {File} file */
  async #open(file) {
    this.#close();
    this.chosen = file.file;
    this.message.textContent = "";
    this.#mark();
    this.#current()?.scrollIntoView({ block: "nearest" });
    forget(file.file); // another page may have changed it
    let effects;
    try {
      effects = await effectsOf(file.file);
    } catch (error) {
      if (this.chosen === file.file) this.message.textContent = reason(error);
      return;
    }
    if (this.chosen !== file.file || this.detail) return; // another one was opened meanwhile
    const write = (/** @type {string} */ saveAs) => this.#write(saveAs);
    const discard = async () => {
      await this.#open(file);
      this.#current()?.focus(); // the button that was pressed is gone
    };
    this.detail = new Detail(file, effects, write, discard);
    this.root.append(this.detail.root);
  }

  /** The button of the open file. @returns {HTMLElement | null} */
  #current() {
    return this.list.querySelector('[aria-current="true"]');
  }

  #close() {
    this.detail?.root.remove();
    this.detail = null;
  }

  #mark() {
    for (const button of this.list.querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.dataset.file === this.chosen));
    }
  }

  /** @param {string} saveAs */
  async #write(saveAs) {
    const { detail } = this;
    if (!detail) return;
    const pressed = document.activeElement;
    detail.root.inert = true; // what is changed now would be lost
    this.message.textContent = t("Saving …");
    try {
      const body = JSON.stringify(detail.request(saveAs));
      const response = await api.fetchApi("/collectionlora/edit", { method: "POST", body });
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error ?? response.statusText);
      changed(answer.file);
      if (this.detail === detail) {
        this.#close();
        await this.load(answer.file);
        this.#current()?.focus(); // the button that was pressed is gone
      } else await this.load(""); // another file was opened meanwhile, and stays as it is
      this.message.textContent = t("Saved: {file}", answer);
    } catch (error) {
      this.message.textContent = reason(error);
      detail.root.inert = false;
      if (pressed instanceof HTMLElement) pressed.focus();
    }
  }

  /** Not while there is something to lose. */
  mayClose() {
    if (!this.detail?.changed()) return true;
    this.message.textContent = t("The changes are not saved yet.");
    return false;
  }
}
