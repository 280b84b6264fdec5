package hostnet

import "runtime"

// lockThread keeps the goroutine on its thread without an unlock, so that the
// runtime ends the thread with it and never reuses one that changed namespace.
func lockThread() { runtime.LockOSThread() }
