/** The errors that stop a response. Whatever else goes wrong is an outcome in the custody log. */

/** What the user typed cannot be meant; nothing was touched. */
export class UsageError extends Error {
  readonly exitCode = 2
}

/** Going on would harm or cannot work; nothing was touched. */
export class RefusedError extends Error {
  readonly exitCode = 4
}

/** Evidence could not be written, or does not match its hash. */
export class EvidenceError extends Error {
  readonly exitCode = 5
}

/** A change could not be undone: the message gives the command to type. */
export class HostLeftChangedError extends Error {
  readonly exitCode = 6
}
