package ops

import "time"

// ShortenPatience makes a probe count as stuck after a millisecond.
func ShortenPatience(p *Probe) { p.progress.Patience = time.Millisecond }
