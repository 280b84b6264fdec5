package pipeline

import "context"

// RecheckOnce runs one round of Recheck.
func RecheckOnce(ctx context.Context, p *Pipeline) { p.recheckAll(ctx) }
