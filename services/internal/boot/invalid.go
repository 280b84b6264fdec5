package boot

import (
	"fmt"
	"os"
)

// invalidError marks a usage error: a wrong flag, or a directory that cannot be written.
type invalidError struct{ error }

func (e *invalidError) Unwrap() error { return e.error }

// Invalid returns a usage error. A program whose Run returns one exits with code 2 and one
// line on standard error.
func Invalid(format string, args ...any) error {
	return &invalidError{fmt.Errorf(format, args...)}
}

// WritableDir creates the directory dir with mode, unless it exists, and checks that files
// can be created in it. flag, without dashes, is the name of the flag that dir comes from;
// the error is an [Invalid] one that names it.
func WritableDir(flag, dir string, mode os.FileMode) error {
	if dir == "" {
		return Invalid("--%s is required", flag)
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return Invalid("--%s: %w", flag, err)
	}
	f, err := os.CreateTemp(dir, ".writable-*")
	if err != nil {
		return Invalid("--%s: %w", flag, err)
	}
	name := f.Name()
	if err := f.Close(); err != nil {
		return Invalid("--%s: %w", flag, err)
	}
	return os.Remove(name)
}
