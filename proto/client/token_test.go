package client

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	now := time.Unix(0, 0)
	source := tokenFile(path, func() time.Time { return now })
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(token string) {
		t.Helper()
		if got, err := source(); err != nil || got != token {
			t.Fatalf("%q, %v; want %q", got, err, token)
		}
	}
	if _, err := source(); err == nil {
		t.Fatal("no file, and no error")
	}
	write("\n")
	if _, err := source(); err == nil {
		t.Fatal("an empty file, and no error")
	}
	write("one\n")
	want("one")
	write("two")
	want("one")
	now = now.Add(tokenAge)
	want("two")
}
