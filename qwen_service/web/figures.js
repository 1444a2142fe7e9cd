// Numbers as people read them.

export const speed = (tps) => (tps ? `${tps < 10 ? tps.toFixed(1) : Math.round(tps)} tok/s` : "");

export function seconds(ms) {
  if (ms < 995) return `${Math.round(ms / 10) * 10} ms`;
  return ms < 60_000 ? `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s` : `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

export const gigabytes = (kib) => (kib / 1_048_576).toFixed(1);

/** About how many tokens a piece is: a card's runtime sends several at once. */
export function tokensIn(text) {
  const latin = text.match(/[\0-\u024f]/g)?.length ?? 0;
  return Math.max(1, Math.round(latin / 4.5 + (text.length - latin) / 1.5));
}

export function dayName(time, now = new Date()) {
  const days = Math.round((new Date(now).setHours(0, 0, 0, 0) - new Date(time).setHours(0, 0, 0, 0)) / 86_400_000);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  return days < 7 ? "This week" : "Earlier";
}
