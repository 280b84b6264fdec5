package identity

import "time"

// SetAfter replaces what ends connections when their certificates expire.
func (s *Source) SetAfter(after func(time.Duration, func()) *time.Timer) { s.after = after }
