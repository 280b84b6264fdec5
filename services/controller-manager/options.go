package main

import (
	"github.com/spf13/pflag"

	"keelson.dev/services/internal/boot"
)

// options are the service's flags. Those of a controller are in its package.
type options struct {
	service   *boot.Elected
	catalogue *catalogue
}

func newOptions(fs *pflag.FlagSet) *options {
	return &options{service: boot.ElectedFlags(fs, name), catalogue: newCatalogue(fs)}
}

func (o *options) check() error {
	if err := o.service.Check(); err != nil {
		return err
	}
	if err := o.catalogue.check(); err != nil {
		return boot.Invalid("%w", err)
	}
	return nil
}
