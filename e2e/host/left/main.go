// Command left fails where anything on this machine is still named with one of the
// words that it reads: what a script's cluster has left behind. They are no arguments,
// or it would find itself.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"keelson.dev/e2e/host"
)

func main() {
	text, err := io.ReadAll(io.LimitReader(os.Stdin, 64<<10))
	words := strings.Fields(string(text))
	if err != nil || len(words) == 0 {
		fmt.Fprintln(os.Stderr, "left: want words to look for on the standard input:", err)
		os.Exit(2)
	}
	w, err := host.Look()
	if err == nil {
		err = w.Gone(words...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "left:", err)
		os.Exit(1)
	}
}
