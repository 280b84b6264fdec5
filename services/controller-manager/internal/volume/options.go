package volume

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/pflag"
)

// Options are the controllers' flags.
type Options struct {
	// Dir is the directory of local volumes on the nodes.
	Dir string
}

// Flags adds the controllers' flags to fs.
func Flags(fs *pflag.FlagSet) *Options {
	o := &Options{}
	fs.StringVar(&o.Dir, "local-volume-dir", "/var/lib/keelson/volumes", "directory on the nodes below which the local provisioner's volumes lie")
	return o
}

// Check returns an error if the path is not absolute.
func (o *Options) Check() error {
	if !filepath.IsAbs(o.Dir) {
		return fmt.Errorf("--local-volume-dir %q: want an absolute path", o.Dir)
	}
	return nil
}
