package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// allowed are the licences that a linked module may have. They permit a program to be
// distributed under Apache-2.0, at most with notices. MPL-2.0 applies only to its own files.
var allowed = map[string]bool{"Apache-2.0": true, "MIT": true, "BSD-2-Clause": true, "BSD-3-Clause": true, "ISC": true, "MPL-2.0": true}

// licenceTexts recognize licences by phrases that only their texts contain. The order matters:
// the text of MPL-2.0 mentions the GNU licences, which are not allowed.
var licenceTexts = []struct {
	name  string
	words *regexp.Regexp
}{
	{"MPL-2.0", regexp.MustCompile(`mozilla public license,? (version|v\.) ?2\.0`)},
	{"GPL", regexp.MustCompile(`gnu (affero |lesser |library )?general public license`)},
	{"BUSL", regexp.MustCompile(`business source license`)},
	{"SSPL", regexp.MustCompile(`server side public license`)},
	{"Commons Clause", regexp.MustCompile(`commons clause`)},
	{"Apache-2.0", regexp.MustCompile(`apache license,? version 2\.0`)},
	{"MIT", regexp.MustCompile(`permission is hereby granted, free of charge, to any person obtaining a copy`)},
	{"BSD-3-Clause", regexp.MustCompile(`redistribution and use in source and binary forms, with or without modification, are permitted.*(neither the names? of|may not be used to endorse)`)},
	{"BSD-2-Clause", regexp.MustCompile(`redistribution and use in source and binary forms, with or without modification, are permitted`)},
	{"ISC", regexp.MustCompile(`permission to use, copy, modify, and(/or)? distribute this software for any purpose with or without fee is hereby granted`)},
}

var licenceFile = regexp.MustCompile(`(?i)^(licen[sc]es?|copying|copyright|unlicense)([-._].*)?$`)

// licenceOf returns the name of the licence in a text, or "" if it is unknown.
func licenceOf(text string) string {
	// Some projects quote their licence line by line.
	words := strings.Join(strings.Fields(strings.ReplaceAll(strings.ToLower(text), "\n>", "\n")), " ")
	for _, l := range licenceTexts {
		if l.words.MatchString(words) {
			return l.name
		}
	}
	return ""
}

// licencesIn returns the names of the licences in a module's directory.
func licencesIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, e := range entries {
		if !e.Type().IsRegular() || !licenceFile.MatchString(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if name := licenceOf(string(text)); name != "" {
			found[name] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// licences checks all modules that are linked into programs that are shipped.
func licences(ctx context.Context, o *options) (string, []string, error) {
	dirs := map[string]string{}
	add := func(m module) {
		if m.Replace != nil {
			m = *m.Replace
		}
		if m.Dir != "" && !m.Main && !strings.HasPrefix(m.Path, ".") {
			dirs[m.Path+"@"+m.Version] = m.Dir
		}
	}
	for dir, pattern := range mains {
		packages, err := linked(ctx, o.at(dir), pattern)
		if err != nil {
			return "", nil, err
		}
		for _, p := range packages {
			if p.Module != nil {
				add(*p.Module)
			}
		}
	}
	for _, name := range runtimePrograms {
		modules, err := built(ctx, filepath.Join(o.bin, "runtime", name))
		if err != nil {
			return "", nil, err
		}
		for _, m := range modules {
			add(m)
		}
	}
	counts := map[string]int{}
	faults, err := judgeLicences(dirs, counts)
	var words []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		words = append(words, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return fmt.Sprintf("%d modules: %s", len(dirs), strings.Join(words, ", ")), faults, err
}

// judgeLicences returns the modules whose licences are unknown or not allowed. It counts each
// licence in counts.
func judgeLicences(dirs map[string]string, counts map[string]int) (faults []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(dirs)) {
		found, err := licencesIn(dirs[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if len(found) == 0 {
			faults = append(faults, name+": no known licence")
		}
		for _, l := range found {
			counts[l]++
			if !allowed[l] {
				faults = append(faults, name+": licence "+l+" is not allowed")
			}
		}
	}
	return faults, nil
}
