package log

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

// Options select what Read writes.
type Options struct {
	// Follow continues until the container has ended.
	Follow bool
	// Since leaves out older entries. The zero time leaves out none.
	Since time.Time
	// Timestamps writes the time before each line.
	Timestamps bool
	// Tail, unless nil, starts that many entries before the end.
	Tail *int64
	// Limit, unless nil, stops after that many bytes.
	Limit *int64
	// Stream is "stdout", "stderr", or "" for both.
	Stream string
}

// poll is the interval at which a followed file is checked.
const poll = 100 * time.Millisecond

// stampFormat is the format of timestamps. It always has nine fractional digits, whatever
// the runtime wrote, so that timestamps sort as text and programs can cut at a fixed
// column.
const stampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// maxLine is the maximum length of a line of the file in bytes. CRI runtimes split lines at
// 16 KiB.
const maxLine = 1 << 20

// errLimit ends a read that has reached its limit.
var errLimit = errors.New("limit reached")

// Read writes a log file to w. With Follow it continues, across rotations, until running
// reports that the container has ended, or returns an error.
func Read(ctx context.Context, name string, o Options, running func() (bool, error), w io.Writer) error {
	f, err := open(name)
	if err != nil {
		return fmt.Errorf("failed to open log file %q: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	if o.Tail != nil {
		offset, err := tailOffset(f, *o.Tail)
		if err != nil {
			return fmt.Errorf("failed to tail log file %q: %w", name, err)
		}
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return err
		}
	}
	out := &writer{w: w, o: o, begun: true}
	if o.Limit != nil {
		out.left = *o.Limit
	}
	reader := bufio.NewReaderSize(f, 64<<10)
	var line []byte
	for {
		line, err = fill(reader, line)
		if err == nil {
			if err := out.write(line); err != nil {
				return ended(err)
			}
			line = line[:0]
			continue
		}
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("failed to read log file %q: %w", name, err)
		}
		if !o.Follow {
			if len(line) > 0 {
				return ended(out.write(line))
			}
			return nil
		}
		next, more, err := follow(ctx, name, f, reader, running)
		if err != nil || !more {
			return err
		}
		if next != nil {
			_ = f.Close()
			f = next
			reader.Reset(f)
			line = line[:0]
		}
	}
}

func ended(err error) error {
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

// fill reads up to the end of a line, which may arrive in several pieces. The part of a
// line beyond maxLine is dropped.
func fill(r *bufio.Reader, line []byte) ([]byte, error) {
	for {
		part, err := r.ReadSlice('\n')
		if room := maxLine - len(line); len(part) > room {
			part = part[:max(room, 0)]
		}
		line = append(line, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return line, err
		}
		return bytes.TrimSuffix(line, []byte{'\n'}), nil
	}
}

// follow waits until there is more to read, in the same file or in the one that replaced
// it; next is the new file. more is false when the container has ended and everything has
// been read.
func follow(ctx context.Context, name string, f *os.File, r *bufio.Reader, running func() (bool, error)) (next *os.File, more bool, err error) {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	asked := time.Time{}
	last, replaced := false, false
	for {
		select {
		case <-ctx.Done():
			return nil, false, ctx.Err()
		case <-ticker.C:
		}
		if _, err := r.Peek(1); err == nil {
			return nil, true, nil
		}
		have, err := f.Stat()
		if err != nil {
			return nil, false, err
		}
		now, err := os.Lstat(name)
		if err == nil && !os.SameFile(have, now) {
			if !replaced {
				// First read what was written before the file was replaced, or by a runtime
				// that was just about to switch to the new file.
				replaced = true
				continue
			}
			opened, err := open(name)
			if err == nil {
				return opened, true, nil
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return nil, false, err
			}
		}
		if last {
			return nil, false, nil // nothing was written after the container's end
		}
		if time.Since(asked) < time.Second {
			continue
		}
		asked = time.Now()
		alive, err := running()
		if err != nil {
			return nil, false, err
		}
		last = !alive
	}
}

// writer writes entries according to the options.
type writer struct {
	w    io.Writer
	o    Options
	left int64
	// begun is true if the next text is at the beginning of a line.
	begun bool
	buf   []byte
}

func (w *writer) write(line []byte) error {
	e, ok := parse(line)
	if !ok {
		return nil
	}
	if !w.o.Since.IsZero() && e.time.Before(w.o.Since) {
		return nil
	}
	if w.o.Stream != "" && e.stream != w.o.Stream {
		return nil
	}
	w.buf = w.buf[:0]
	if w.o.Timestamps && w.begun {
		w.buf = append(e.time.AppendFormat(w.buf, stampFormat), ' ')
	}
	w.begun = len(e.text) > 0 && e.text[len(e.text)-1] == '\n'
	w.buf = append(w.buf, e.text...)
	limited := false
	if w.o.Limit != nil {
		if int64(len(w.buf)) >= w.left {
			w.buf, limited = w.buf[:w.left], true
		}
		w.left -= int64(len(w.buf))
	}
	if _, err := w.w.Write(w.buf); err != nil {
		return err
	}
	if limited {
		return errLimit
	}
	return nil
}

// tailOffset returns the offset at which the last n lines begin.
func tailOffset(f *os.File, n int64) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || n <= 0 {
		return size, err
	}
	const block = 32 << 10
	buf := make([]byte, block)
	var seen int64
	for end := size; end > 0; {
		begin := max(0, end-block)
		chunk := buf[:end-begin]
		if _, err := f.ReadAt(chunk, begin); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := len(chunk) - 1; i >= 0; i-- {
			if chunk[i] != '\n' || begin+int64(i) == size-1 {
				continue
			}
			if seen++; seen == n {
				return begin + int64(i) + 1, nil
			}
		}
		end = begin
	}
	return 0, nil
}

// Tail returns the last lines of a log, at most the given number of lines and bytes. It
// returns "" if the log cannot be read.
func Tail(name string, lines, most int64) string {
	var b strings.Builder
	if err := Read(context.Background(), name, Options{Tail: &lines}, nil, &b); err != nil {
		return ""
	}
	text := b.String()
	if int64(len(text)) > most {
		text = text[int64(len(text))-most:]
	}
	return strings.ToValidUTF8(text, "�")
}
