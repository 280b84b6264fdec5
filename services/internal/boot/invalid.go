package boot

import (
	"fmt"
	"os"
)

// invalidError marks an error as the caller's: a wrong flag, a directory that
// cannot be written.
type invalidError struct{ error }

func (e *invalidError) Unwrap() error { return e.error }

// Invalid says that the program was called wrongly: returned from a Run, it ends
// the program with code 2 and one line on standard error.
func Invalid(format string, args ...any) error {
	return &invalidError{fmt.Errorf(format, args...)}
}

// WritableDir makes the directory that a flag names and makes sure that files can
// be written there.
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
