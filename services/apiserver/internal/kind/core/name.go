package core

import "strings"

// qualified tells a name that belongs to a domain: "example.com/name".
func qualified(name string) bool { return strings.Contains(name, "/") }
