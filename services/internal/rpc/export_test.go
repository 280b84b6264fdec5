package rpc

import (
	"testing"
	"time"
)

// Impatient shortens how long a message may take.
func Impatient(t *testing.T, d time.Duration) {
	t.Helper()
	before := classLimits
	for i := range classLimits {
		classLimits[i].patience = d
	}
	t.Cleanup(func() { classLimits = before })
}

// StrangerMessage is the largest message of a stranger.
func StrangerMessage() int { return classLimits[Stranger].message }

// MaxElements bounds the messages in one message.
const MaxElements = maxElements
