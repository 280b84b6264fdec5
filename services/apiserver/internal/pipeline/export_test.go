package pipeline

import "context"

// RecheckOnce is one round of Recheck.
func RecheckOnce(ctx context.Context, p *Pipeline) { p.recheckAll(ctx) }
