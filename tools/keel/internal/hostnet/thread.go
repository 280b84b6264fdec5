package hostnet

import "runtime"

// lockThread locks the goroutine to its thread and never unlocks it, so that the Go runtime
// ends the thread with the goroutine instead of reusing one in another namespace.
func lockThread() { runtime.LockOSThread() }
