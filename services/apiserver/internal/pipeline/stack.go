package pipeline

import "runtime"

// deepStack is a little more than what a write of a Pod needs.
const deepStack = 14 << 10

// growStack makes room for a write at once. Fronts serve each request on a
// goroutine of its own, whose stack begins at a few KiB; growing it step by step
// copies it four times, deeper each time, which costs more than decoding does.
//
//go:noinline
func growStack() {
	var room [deepStack]byte
	runtime.KeepAlive(&room)
}
