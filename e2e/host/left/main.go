// Command left fails if a name on this machine contains one of the words that it reads from
// its standard input: then a script's cluster has left something behind. The words are not
// arguments, or it would find itself.
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
		fmt.Fprintln(os.Stderr, "left: the standard input has no words to look for:", err)
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
