// Package seldom thins out log lines that repeat themselves: libraries say the same
// thing at every attempt, many times a second while a quorum is missing.
//
// It must never hold back what has not just been said.
package seldom

import (
	"sync"
	"time"
)

const (
	// every is how often the same is said.
	every = 10 * time.Second
	// maxKeys bounds what is remembered.
	maxKeys = 256
)

// Log remembers what was said lately. The zero value is ready.
type Log struct {
	mu   sync.Mutex
	said map[string]*said
}

type said struct {
	at       time.Time
	withheld int
}

// Allow reports whether a line is to be said now, and how many like it were withheld
// since the last that was.
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
