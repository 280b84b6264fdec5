// Package log lays out and reads the log files that a container runtime writes in CRI's
// format, and bounds their size.
//
// It must never hold more than one line in memory, fail on a line that it cannot parse, or
// follow a symbolic link below the root of the log directories.
package log

import (
	"bytes"
	"time"
)

// entry is one line of a CRI log: "2016-10-06T00:17:09.669794202Z stdout F text".
type entry struct {
	time   time.Time
	stream string
	// text includes the newline, unless the line continues in the next entry.
	text []byte
}

// parse parses a line without its newline. The entry shares the line's memory.
func parse(line []byte) (entry, bool) {
	var e entry
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return e, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return e, false
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return e, false
	}
	switch string(stream) {
	case "stdout", "stderr":
	default:
		return e, false
	}
	tags, text, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return e, false
	}
	e.time, e.stream = t, string(stream)
	first, _, _ := bytes.Cut(tags, []byte{':'})
	if string(first) == "P" {
		e.text = text
	} else {
		e.text = append(text[:len(text):len(text)], '\n')
	}
	return e, true
}
