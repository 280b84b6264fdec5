package podgc

import (
	"errors"

	"github.com/spf13/pflag"
)

// Options are the controller's flags.
type Options struct {
	// Terminated is how many finished pods are kept; 0 keeps all.
	Terminated int
}

// Flags adds the controller's flags to fs.
func Flags(fs *pflag.FlagSet) *Options {
	o := &Options{}
	fs.IntVar(&o.Terminated, "terminated-pod-gc-threshold", DefaultTerminated, "how many finished pods are kept; 0 keeps all")
	return o
}

// Check returns an error if the number is negative.
func (o *Options) Check() error {
	if o.Terminated < 0 {
		return errors.New("--terminated-pod-gc-threshold: must not be negative")
	}
	return nil
}
