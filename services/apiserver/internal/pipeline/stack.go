package pipeline

import "runtime"

// deepStack is a little more than the stack that a write of a Pod needs, in bytes.
const deepStack = 14 << 10

// growStack grows the stack to the size that a write needs at once. Fronts serve each request on
// a new goroutine, whose stack has a few KiB; growing it step by step copies it four times,
// deeper each time, which costs more than decoding.
//
//go:noinline
func growStack() {
	var room [deepStack]byte
	runtime.KeepAlive(&room)
}
