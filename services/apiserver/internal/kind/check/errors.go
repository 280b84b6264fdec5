// Package check has what the validation of all kinds is made of: a collector of
// field errors, and checks of names, numbers and quantities that cost nothing
// when the value is right. Messages are apimachinery's where it has one.
//
// It must never know a kind.
package check

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Errors collects field errors. The zero value is ready; a valid object costs no
// allocation. Paths are built by the caller, so callers build them only when
// something is wrong or where a list element needs one.
type Errors struct{ List field.ErrorList }

// Required says that a field is missing.
func (e *Errors) Required(p *field.Path, detail string) {
	e.List = append(e.List, field.Required(p, detail))
}

// Invalid says that a field's value is wrong.
func (e *Errors) Invalid(p *field.Path, value any, detail string) {
	e.List = append(e.List, field.Invalid(p, value, detail))
}

// Forbidden says that a field must not be set.
func (e *Errors) Forbidden(p *field.Path, detail string) {
	e.List = append(e.List, field.Forbidden(p, detail))
}

// Unsupported says that Keelson does not do what the field asks for, although
// Kubernetes may.
func (e *Errors) Unsupported(p *field.Path, what string) {
	e.List = append(e.List, field.Forbidden(p, what+" not supported by Keelson"))
}

// Duplicate says that a value occurs twice.
func (e *Errors) Duplicate(p *field.Path, value any) {
	e.List = append(e.List, field.Duplicate(p, value))
}

// Append adds errors found by others.
func (e *Errors) Append(list field.ErrorList) {
	e.List = append(e.List, list...)
}

// Messages reports each of a name check's messages about parent's field child;
// an empty child is parent itself.
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

// OneOf checks an enumeration whose empty value is missing.
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

// NotNegative is the message for a number below zero.
const NotNegative = "must be greater than or equal to 0"

// Immutable is the message for a field that cannot change.
const Immutable = "field is immutable"

// Seen remembers strings: few in a slice, many in a map. The zero value is
// empty.
type Seen struct {
	few  []string
	many map[string]struct{}
}

const fewAtMost = 16

// Add adds a string and tells whether it was there before.
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

// Has tells whether a string was added.
func (s *Seen) Has(v string) bool {
	if s.many != nil {
		_, ok := s.many[v]
		return ok
	}
	return slices.Contains(s.few, v)
}
