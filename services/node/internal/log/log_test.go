package log

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const sample = `2026-05-01T12:00:00.000000001Z stdout F one
2026-05-01T12:00:01.000000000Z stderr F two
not a line of a log
2026-05-01T12:00:02.000000000Z stdout P thr
2026-05-01T12:00:03.000000000Z stdout F ee
2026-05-01T12:00:04.000000000Z stdout F:tag 
2026-05-01T12:00:05.000000000Z stdout F five
`

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestRead(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"all":           {Options{}, "one\ntwo\nthree\n\nfive\n"},
		"stdout":        {Options{Stream: "stdout"}, "one\nthree\n\nfive\n"},
		"stderr":        {Options{Stream: "stderr"}, "two\n"},
		"since":         {Options{Since: time.Date(2026, 5, 1, 12, 0, 4, 0, time.UTC)}, "\nfive\n"},
		"tail":          {Options{Tail: n(2)}, "\nfive\n"},
		"tail of none":  {Options{Tail: n(0)}, ""},
		"long tail":     {Options{Tail: n(100)}, "one\ntwo\nthree\n\nfive\n"},
		"limit":         {Options{Limit: n(5)}, "one\nt"},
		"limit at end":  {Options{Limit: n(4)}, "one\n"},
		"limit of none": {Options{Limit: n(0)}, ""},
		"timestamps": {Options{Timestamps: true, Tail: n(4)},
			"2026-05-01T12:00:02.000000000Z three\n2026-05-01T12:00:04.000000000Z \n2026-05-01T12:00:05.000000000Z five\n"},
	} {
		var out bytes.Buffer
		if err := Read(context.Background(), write(t, sample), c.o, nil, &out); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if out.String() != c.want {
			t.Errorf("%s: %q, want %q", name, out.String(), c.want)
		}
	}
	if err := Read(context.Background(), "/no/such/log", Options{}, nil, io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	// The last line may lack its newline.
	var out bytes.Buffer
	if err := Read(context.Background(), write(t, "2026-05-01T12:00:00Z stdout F cut"), Options{}, nil, &out); err != nil || out.String() != "cut\n" {
		t.Errorf("last line without newline: %q %v", out.String(), err)
	}
}

func TestTailOffset(t *testing.T) {
	var b strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&b, "2026-05-01T12:00:00Z stdout F line %d %s\n", i, strings.Repeat("x", i%50))
	}
	name := write(t, b.String())
	for _, n := range []int64{1, 2, 999, 4999, 5000, 6000} {
		var out bytes.Buffer
		if err := Read(context.Background(), name, Options{Tail: &n}, nil, &out); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if int64(len(lines)) != min(n, 5000) || !strings.HasPrefix(lines[len(lines)-1], "line 4999 ") {
			t.Errorf("tail %d: %d lines", n, len(lines))
		}
	}
}

// TestTimestamps checks that timestamps always have nine fractional digits, so that lines
// sort as text.
func TestTimestamps(t *testing.T) {
	name := write(t, `2026-05-01T12:00:00.49Z stdout F a
2026-05-01T12:00:00.5Z stdout F b
2026-05-01T12:00:01Z stdout P c
2026-05-01T12:00:01.1Z stdout F d
2026-05-01T14:00:02.123456789+02:00 stdout F e
`)
	want := `2026-05-01T12:00:00.490000000Z a
2026-05-01T12:00:00.500000000Z b
2026-05-01T12:00:01.000000000Z cd
2026-05-01T14:00:02.123456789+02:00 e
`
	var out bytes.Buffer
	if err := Read(context.Background(), name, Options{Timestamps: true}, nil, &out); err != nil || out.String() != want {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// TestFollow checks that a followed log shows new lines, crosses a rotation, and ends when
// its container ends.
func TestFollow(t *testing.T) {
	name := write(t, "2026-05-01T12:00:00Z stdout F one\n")
	r, w := io.Pipe()
	var alive atomic.Bool
	alive.Store(true)
	done := make(chan error, 1)
	go func() {
		err := Read(context.Background(), name, Options{Follow: true}, func() (bool, error) { return alive.Load(), nil }, w)
		_ = w.CloseWithError(io.EOF)
		done <- err
	}()
	next := make([]byte, 64)
	expect := func(want string) {
		t.Helper()
		if _, err := io.ReadFull(r, next[:len(want)]); err != nil || string(next[:len(want)]) != want {
			t.Fatalf("got %q, want %q, %v", next[:len(want)], want, err)
		}
	}
	add := func(text string) {
		t.Helper()
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	expect("one\n")
	add("2026-05-01T12:00:01Z stdout F tw")
	add("o\n")
	expect("two\n")
	if err := os.Rename(name, name+".old"); err != nil {
		t.Fatal(err)
	}
	add("2026-05-01T12:00:02Z stdout F three\n")
	expect("three\n")
	add("2026-05-01T12:00:03Z stdout F four\n")
	alive.Store(false)
	expect("four\n")
	if n, err := r.Read(next); err == nil {
		t.Errorf("read after the end: %q", next[:n])
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Read(ctx, name, Options{Follow: true}, func() (bool, error) { return true, nil }, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// atEnd calls a function when a file has been read to its end.
type atEnd struct {
	*os.File
	then func()
}

func (a *atEnd) Read(b []byte) (int, error) {
	n, err := a.File.Read(b)
	if errors.Is(err, io.EOF) && a.then != nil {
		a.then()
		a.then = nil
	}
	return n, err
}

// TestFollowReadsToTheEnd checks that lines written between the last read of a file and its
// rotation are not lost.
func TestFollowReadsToTheEnd(t *testing.T) {
	name := write(t, "")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := bufio.NewReader(&atEnd{f, func() {
		if _, err := f.WriteString("late"); err != nil {
			t.Error(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Error(err)
		}
		if err := errors.Join(os.Rename(name, name+".old"), os.WriteFile(name, nil, 0o600)); err != nil {
			t.Error(err)
		}
	}})
	running := func() (bool, error) { return true, nil }
	next, more, err := follow(t.Context(), name, f, r, running)
	if next != nil || !more || err != nil {
		t.Fatalf("before the first file was read to its end: %v %v %v", next, more, err)
	}
	if text, _ := io.ReadAll(r); string(text) != "late" {
		t.Errorf("read %q", text)
	}
	next, more, err = follow(t.Context(), name, f, r, running)
	if next == nil || !more || err != nil {
		t.Fatalf("after it was read to its end: %v %v %v", next, more, err)
	}
	next.Close()
}

func TestTail(t *testing.T) {
	if got := Tail(write(t, sample), 2, 100); got != "\nfive\n" {
		t.Errorf("%q", got)
	}
	if got := Tail(write(t, sample), 100, 5); got != "five\n" {
		t.Errorf("%q", got)
	}
	if got := Tail("/no/such/log", 1, 1); got != "" {
		t.Errorf("%q", got)
	}
}

// FuzzRead checks that reading any file content ends without an error and never yields more
// than the file holds.
func FuzzRead(f *testing.F) {
	f.Add([]byte(sample), int64(2))
	f.Add([]byte("2026-05-01T12:00:00Z stdout F x"), int64(1))
	f.Add([]byte("\n\n \n  \nx"), int64(0))
	f.Add(bytes.Repeat([]byte("2026-05-01T12:00:00Z stderr P x\n"), 3000), int64(5))
	f.Fuzz(func(t *testing.T, data []byte, tail int64) {
		name := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var all, last bytes.Buffer
		if err := Read(context.Background(), name, Options{}, nil, &all); err != nil {
			t.Fatal(err)
		}
		if all.Len() > len(data) {
			t.Fatalf("%d bytes out of %d", all.Len(), len(data))
		}
		if err := Read(context.Background(), name, Options{Tail: &tail, Timestamps: true}, nil, &last); err != nil {
			t.Fatal(err)
		}
		for _, line := range bytes.Split(data, []byte{'\n'}) {
			if e, ok := parse(line); ok && e.time.IsZero() && !bytes.HasPrefix(line, []byte("0001-01-01T00:00:00")) {
				t.Fatalf("line %q has no timestamp", line)
			}
		}
	})
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "0.log")
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	reopened := 0
	var fail error
	r := Rotation{Size: 10, Files: 3, Now: func() time.Time { at = at.Add(time.Second); return at }, Reopen: func(_ context.Context, id string) error {
		if id != "id" {
			t.Errorf("container %q", id)
		}
		reopened++
		if fail != nil {
			return fail
		}
		return os.WriteFile(name, nil, 0o600)
	}}
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rotate := func() error { return r.Rotate(context.Background(), "id", name) }
	put("short")
	if err := rotate(); err != nil || reopened != 0 {
		t.Errorf("a short file: %v, reopened %d times", err, reopened)
	}
	for i := range 5 {
		put(fmt.Sprintf("long enough %d", i))
		if err := rotate(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(name + "*")
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(files)
	if len(files) != 3 || !strings.HasSuffix(files[1], ".gz") || strings.HasSuffix(files[2], ".gz") || reopened != 5 {
		t.Fatalf("files %q, reopened %d times", files, reopened)
	}
	f, err := os.Open(files[1])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(gz); err != nil || string(text) != "long enough 3" {
		t.Errorf("compressed: %q %v", text, err)
	}
	// If the runtime does not reopen its log, the file keeps its name.
	fail = errors.New("cannot reopen")
	put("long enough again")
	if err := rotate(); !errors.Is(err, fail) {
		t.Errorf("error: %v", err)
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "long enough again" {
		t.Errorf("log file: %q %v", b, err)
	}
	// An interrupted rotation is completed.
	fail = nil
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := rotate(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(name); err != nil {
		t.Error(err)
	}
}
