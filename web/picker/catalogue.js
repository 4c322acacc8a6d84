// Catalogues of collection files, fetched once for each version of a file.
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

/** @type {Map<string, Promise<Effect[]>>} */
const known = new Map();

/**
 * The effects of a collection file. Rejects with the server's message for a file that is missing or damaged.
 * @param {string} file as Load Collection names it
 * @returns {Promise<Effect[]>}
 */
export function effectsOf(file) {
  let answer = known.get(file);
  if (!answer) {
    answer = fetchEffects(file);
    known.set(file, answer);
    answer.catch(() => known.delete(file)); // it may be there the next time
  }
  return answer;
}

/** @param {string} file */
export function forget(file) {
  known.delete(file);
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
