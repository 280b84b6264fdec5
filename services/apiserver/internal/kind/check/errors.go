// Package check contains the building blocks of validation: a collector of field errors, and
// checks of names, numbers and quantities that cost nothing if the value is valid. Messages are
// apimachinery's where it has one.
//
// It must never know about a kind.
package check

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Errors collects field errors. The zero value is ready to use, and a valid object causes no
// allocation. Callers build paths, so they should do so only for errors or where a list element
// needs one.
type Errors struct{ List field.ErrorList }

// Required adds the error of a missing field.
func (e *Errors) Required(p *field.Path, detail string) {
	e.List = append(e.List, field.Required(p, detail))
}

// Invalid adds the error of a field with an invalid value.
func (e *Errors) Invalid(p *field.Path, value any, detail string) {
	e.List = append(e.List, field.Invalid(p, value, detail))
}

// Forbidden adds the error of a field that must not be set.
func (e *Errors) Forbidden(p *field.Path, detail string) {
	e.List = append(e.List, field.Forbidden(p, detail))
}

// Unsupported adds the error of a field that requests what Keelson does not support, although
// Kubernetes may.
func (e *Errors) Unsupported(p *field.Path, what string) {
	e.List = append(e.List, field.Forbidden(p, what+" not supported by Keelson"))
}

// Duplicate adds the error of a value that occurs twice.
func (e *Errors) Duplicate(p *field.Path, value any) {
	e.List = append(e.List, field.Duplicate(p, value))
}

// Append adds errors from other checks.
func (e *Errors) Append(list field.ErrorList) {
	e.List = append(e.List, list...)
}

// Messages adds each message of a name check as an error of parent's field child, or of parent
// itself if child is empty.
func (e *Errors) Messages(parent *field.Path, child, value string, messages []string) {
	if len(messages) > 0 {
		e.messages(parent, child, value, messages)
	}
}

func (e *Errors) messages(parent *field.Path, child, value string, messages []string) {
	if child != "" {
		parent = parent.Child(child)
	}
	for _, m := range messages {
		e.Invalid(parent, value, m)
	}
}

// OneOf checks an enumeration that must not be empty.
func OneOf[T ~string](e *Errors, parent *field.Path, child string, value T, allowed ...T) {
	if value == "" {
		e.Required(parent.Child(child), "")
		return
	}
	Supported(e, parent, child, value, allowed...)
}

// Supported checks an enumeration.
func Supported[T ~string](e *Errors, parent *field.Path, child string, value T, allowed ...T) {
	if !slices.Contains(allowed, value) {
		allowed = slices.Clone(allowed)
		e.List = append(e.List, field.NotSupported(parent.Child(child), value, allowed))
	}
}

// AtLeastZero checks a number that must not be negative.
func (e *Errors) AtLeastZero(parent *field.Path, child string, value int64) {
	if value < 0 {
		e.Invalid(parent.Child(child), value, NotNegative)
	}
}

// NotNegative is the message for a negative number.
const NotNegative = "must be greater than or equal to 0"

// Immutable is the message for a field that cannot be changed.
const Immutable = "field is immutable"

// Seen is a set of strings: a slice if there are few, and a map if there are many. The zero value
// is empty.
type Seen struct {
	few  []string
	many map[string]struct{}
}

const fewAtMost = 16

// Add adds a string and reports whether it was in the set before.
func (s *Seen) Add(v string) (twice bool) {
	if s.Has(v) {
		return true
	}
	switch {
	case s.many != nil:
		s.many[v] = struct{}{}
	case len(s.few) < fewAtMost:
		s.few = append(s.few, v)
	default:
		s.many = make(map[string]struct{}, 4*fewAtMost)
		for _, f := range s.few {
			s.many[f] = struct{}{}
		}
		s.many[v] = struct{}{}
	}
	return false
}

// Has reports whether a string was added.
func (s *Seen) Has(v string) bool {
	if s.many != nil {
		_, ok := s.many[v]
		return ok
	}
	return slices.Contains(s.few, v)
}
