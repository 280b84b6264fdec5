// Times and durations as Kubernetes' JSON writes them.

/** Returns RFC 3339 in UTC with so many digits of the second. */
export function timeToText(seconds: number, nanos: number, digits: number): string {
  const text = new Date(seconds * 1000).toISOString().slice(0, 19);
  return digits > 0 ? `${text}.${String(nanos).padStart(9, "0").slice(0, digits)}Z` : `${text}Z`;
}

export function timeFromText(json: unknown, path: string, fraction: boolean): { seconds: number; nanos: number } {
  const text = json instanceof Date ? json.toISOString() : String(json);
  const found = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(\d{1,9}))?(?:Z|[+-]\d\d:\d\d)$/i.exec(text);
  const at = found === null ? NaN : Date.parse(text);
  if (found === null || Number.isNaN(at)) throw new TypeError(`${path}: ${JSON.stringify(json)} is not a time in RFC 3339`);
  return { seconds: Math.floor(at / 1000), nanos: fraction ? Number((found[1] ?? "").padEnd(9, "0")) : 0 };
}

const units: Record<string, bigint> = { ns: 1n, us: 1000n, "µs": 1000n, ms: 1_000_000n, s: 1_000_000_000n, m: 60_000_000_000n, h: 3_600_000_000_000n };

/** Returns the nanoseconds of a duration as Go writes it, for instance 1m30s. */
export function durationFromText(json: unknown, path: string): bigint {
  const text = String(json);
  if (!/^[+-]?(0|(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+)$/.test(text)) throw new TypeError(`${path}: ${JSON.stringify(json)} is not a duration such as 1m30s`);
  let total = 0n;
  for (const [, whole, part, unit] of text.matchAll(/(\d+)(?:\.(\d+))?(ns|us|µs|ms|s|m|h)/g)) {
    const size = units[unit as string] as bigint;
    total += BigInt(whole as string) * size;
    if (part !== undefined) total += (BigInt(part) * size) / 10n ** BigInt(part.length);
  }
  return text.startsWith("-") ? -total : total;
}

/** Returns a duration as Go writes it. */
export function durationToText(nanos: bigint): string {
  if (nanos < 0n) return "-" + durationToText(-nanos);
  if (nanos < 1_000_000_000n) {
    for (const unit of ["ms", "µs", "ns"]) if (nanos >= (units[unit] as bigint)) return decimal(nanos, units[unit] as bigint) + unit;
    return "0s";
  }
  const hours = nanos / 3_600_000_000_000n, minutes = (nanos / 60_000_000_000n) % 60n;
  let text = decimal(nanos % 60_000_000_000n, 1_000_000_000n) + "s";
  if (hours > 0n || minutes > 0n) text = `${minutes}m${text}`;
  return hours > 0n ? `${hours}h${text}` : text;
}

function decimal(value: bigint, unit: bigint): string {
  const digits = (value % unit).toString().padStart(unit.toString().length - 1, "0").replace(/0+$/, "");
  return digits === "" || unit === 1n ? `${value / unit}` : `${value / unit}.${digits}`;
}
