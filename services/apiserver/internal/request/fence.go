package request

import "context"

// Fence is the epoch that a request's writes depend on, as recorded by package fence.
type Fence struct {
	// Key is the key of the epoch, the same in both stores.
	Key string
	// Lasting and Transient are the key's revisions in the two stores.
	Lasting, Transient int64
}

type fenceKey struct{}

// WithFence makes the writes of a request depend on an epoch.
func WithFence(ctx context.Context, f Fence) context.Context {
	return context.WithValue(ctx, fenceKey{}, &f)
}

// FenceFrom returns the epoch that the writes depend on, or nil.
func FenceFrom(ctx context.Context) *Fence {
	f, _ := ctx.Value(fenceKey{}).(*Fence)
	return f
}
