package core

import "strings"

// qualified reports whether a name has a domain, as in "example.com/name".
func qualified(name string) bool { return strings.Contains(name, "/") }
