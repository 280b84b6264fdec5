// Command report reads what a run of the official suite wrote and says what
// passed, failed and was not run, by SIG. It holds a run against the record of
// tests that have passed before and fails when one of them fails; it never
// takes a name out of the record.
//
//	report [-passed FILE [-record]] REPORT.json
//	report -focus FILE        prints a regular expression of the names in FILE
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
)

func main() {
	passed := flag.String("passed", "", "the record: one test name a line")
	record := flag.Bool("record", false, "add to the record what passed")
	focus := flag.String("focus", "", "print a regular expression that selects the names in this file")
	flag.Parse()
	if err := run(*passed, *record, *focus, flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "report: %v\n", err)
		os.Exit(1)
	}
}

func run(passedFile string, record bool, focusFile string, args []string) error {
	if focusFile != "" {
		names, err := readNames(focusFile)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return fmt.Errorf("%s names no test", focusFile)
		}
		fmt.Println(focusOf(names))
		return nil
	}
	if len(args) != 1 {
		return errors.New("name one report")
	}
	data, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	specs, err := parse(data)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	var known []string
	if passedFile != "" {
		if known, err = readNames(passedFile); err != nil {
			return err
		}
	}
	if record {
		all, added := merge(known, specs)
		if err := writeNames(passedFile, all); err != nil {
			return err
		}
		fmt.Printf("%d tests recorded, %d of them new\n", len(all), added)
		return nil
	}
	s := summarize(specs, known)
	s.print(os.Stdout)
	return s.err()
}
