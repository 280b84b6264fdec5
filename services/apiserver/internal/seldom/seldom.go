// Package seldom limits log lines that repeat: libraries log the same line at every attempt, many
// times a second while there is no quorum.
//
// It must never suppress a line that was not logged recently.
package seldom

import (
	"sync"
	"time"
)

const (
	// every is the minimum interval between two equal lines.
	every = 10 * time.Second
	// maxKeys bounds the number of lines that are remembered.
	maxKeys = 256
)

// Log remembers the lines that were logged recently. The zero value is ready to use.
type Log struct {
	mu   sync.Mutex
	said map[string]*said
}

type said struct {
	at       time.Time
	withheld int
}

// Allow reports whether a line should be logged now. If so, withheld is how many equal lines have
// been suppressed since the last one that was logged.
func (l *Log) Allow(line string, now time.Time) (withheld int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.said[line]
	if s != nil && now.Sub(s.at) < every {
		s.withheld++
		return 0, false
	}
	if s == nil {
		if l.said == nil || len(l.said) >= maxKeys {
			l.said = make(map[string]*said)
		}
		s = new(said)
		l.said[line] = s
	}
	withheld = s.withheld
	*s = said{at: now}
	return withheld, true
}
