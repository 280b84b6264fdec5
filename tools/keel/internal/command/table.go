package command

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// narrowest is the minimum width of a wrapped column, in characters.
const narrowest = 24

// table writes rows in columns. On a terminal the last column is wrapped to the terminal's
// width; otherwise each row is one line.
func table(w io.Writer, rows [][]string) error {
	return writeTable(w, rows, terminalWidth(w))
}

func writeTable(w io.Writer, rows [][]string, width int) error {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	const gap = 2
	var out strings.Builder
	for _, row := range rows {
		at := 0
		var line strings.Builder
		for i, cell := range row[:len(row)-1] {
			line.WriteString(cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+gap))
			at += widths[i] + gap
		}
		last := []string{row[len(row)-1]}
		if width > 0 {
			last = wrap(last[0], max(width-at, narrowest))
		}
		line.WriteString(strings.Join(last, "\n"+strings.Repeat(" ", at)))
		out.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// wrap breaks a text between words into lines of at most width characters. A longer word gets
// its own line.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}

// terminalWidth returns the width of the terminal that w writes to, or 0 if w is not a
// terminal.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// checkOutput returns an error unless output is a format that -o supports.
func checkOutput(output string) error {
	if output != "" && output != "json" {
		return usageError{fmt.Errorf("-o %s: the only output format is json", output)}
	}
	return nil
}
