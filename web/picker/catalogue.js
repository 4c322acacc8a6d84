// Catalogues of collection files. Nothing is kept here: the server keeps each version of a file and knows which is the latest.
import { api } from "../../../scripts/api.js";

/**
 * @typedef {object} Effect
 * @property {string} name
 * @property {string} title
 * @property {string} category
 * @property {string} prompt
 * @property {string | null} thumbnail address of its picture: source and result side by side, or the result alone
 * @property {string | null} own address of the same on the user's own picture
 */

/** Requests under way: galleries of one file share one. @type {Map<string, Promise<Effect[]>>} */
const asked = new Map();
/** @type {Set<(file: string) => void>} */
const listeners = new Set();

/**
 * The effects of a collection file. Rejects with the server's message for a file that is missing or damaged.
 * @param {string} file as Load Collection names it
 * @returns {Promise<Effect[]>}
 */
export function effectsOf(file) {
  const known = asked.get(file);
  if (known) return known;
  const answer = fetchEffects(file).finally(() => {
    if (asked.get(file) === answer) asked.delete(file);
  });
  asked.set(file, answer);
  return answer;
}

/** What is asked from now on is answered from now on. @param {string} file */
export function forget(file) {
  asked.delete(file);
}

/** Say that a file, or the user's pictures of it, are other ones now. @param {string} file */
export function changed(file) {
  forget(file);
  for (const listener of listeners) listener(file);
}

/** Call `listener` with each file that has changed. @param {(file: string) => void} listener */
export function onChanged(listener) {
  listeners.add(listener);
}

/** @param {string} file */
async function fetchEffects(file) {
  const response = await api.fetchApi(`/collectionlora/catalogue?file=${encodeURIComponent(file)}`);
  const content = await response.json();
  if (!response.ok) throw new Error(content.error ?? response.statusText);
  return content.map((/** @type {Effect} */ effect) => ({
    ...effect,
    thumbnail: effect.thumbnail ? api.apiURL(effect.thumbnail) : null,
    own: effect.own ? api.apiURL(effect.own) : null,
  }));
}
