package command

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

// Two at once would both write keys, and one would serve with what the other replaced.
func TestOneUpAtATime(t *testing.T) {
	var said bytes.Buffer
	e := &env{home: t.TempDir(), out: &said}
	unlock, err := e.alone(t.Context(), e.home)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.alone(ended, e.home); !errors.Is(err, context.Canceled) {
		t.Fatalf("a second one: %v", err)
	}
	if !strings.Contains(said.String(), "waiting for another") {
		t.Errorf("it says %q", said.String())
	}
	unlock()
	again, err := e.alone(t.Context(), e.home)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
