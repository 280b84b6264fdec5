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

// Log holds the lines that were logged recently. The zero value is ready to use.
type Log struct {
	mu     sync.Mutex
	logged map[string]*record
}

// record is the state of one line.
type record struct {
	at       time.Time // when it was last logged
	withheld int
}

// Allow reports whether a line should be logged now. If so, withheld is how many equal lines have
// been suppressed since the last one that was logged.
func (l *Log) Allow(line string, now time.Time) (withheld int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.logged[line]
	if s != nil && now.Sub(s.at) < every {
		s.withheld++
		return 0, false
	}
	if s == nil {
		if l.logged == nil || len(l.logged) >= maxKeys {
			l.logged = make(map[string]*record)
		}
		s = new(record)
		l.logged[line] = s
	}
	withheld = s.withheld
	*s = record{at: now}
	return withheld, true
}
