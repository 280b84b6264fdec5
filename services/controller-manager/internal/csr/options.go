package csr

import (
	"fmt"

	"github.com/spf13/pflag"
)

// Options are the controller's flags.
type Options struct {
	// Authority signs; it is nil if no directory is given. Check loads it.
	Authority *Authority

	dir string
}

// Flags adds the controller's flags to fs.
func Flags(fs *pflag.FlagSet) *Options {
	o := &Options{}
	fs.StringVar(&o.dir, "cluster-ca", "", "directory with ca.crt and ca.key, to sign certificates with; empty signs none")
	return o
}

// Check loads the authority.
func (o *Options) Check() error {
	if o.dir == "" {
		return nil
	}
	var err error
	if o.Authority, err = LoadAuthority(o.dir); err != nil {
		return fmt.Errorf("--cluster-ca: %w", err)
	}
	return nil
}
