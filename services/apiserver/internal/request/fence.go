package request

import "context"

// Fence is the epoch that the writes of a request depend on: what package fence
// wrote for it in the stores.
type Fence struct {
	// Key is the same in both stores.
	Key string
	// Lasting and Transient are its revisions there.
	Lasting, Transient int64
}

type fenceKey struct{}

// WithFence makes the writes of a request depend on an epoch.
func WithFence(ctx context.Context, f Fence) context.Context {
	return context.WithValue(ctx, fenceKey{}, &f)
}

// FenceFrom is the epoch that the writes depend on; nil is none.
func FenceFrom(ctx context.Context) *Fence {
	f, _ := ctx.Value(fenceKey{}).(*Fence)
	return f
}
