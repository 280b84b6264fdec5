package tokensecret

import (
	"fmt"
	"os"

	"github.com/spf13/pflag"
)

// Options are the controller's flags.
type Options struct {
	// Signer signs the tokens; it is nil if no key is given. Check reads the key.
	Signer *Signer

	file string
}

// Flags adds the controller's flags to fs.
func Flags(fs *pflag.FlagSet) *Options {
	o := &Options{}
	fs.StringVar(&o.file, "service-account-key", "", "private key in PEM that signs the tokens of kubernetes.io/service-account-token secrets; empty signs none")
	return o
}

// Check reads the key.
func (o *Options) Check() error {
	if o.file == "" {
		return nil
	}
	data, err := os.ReadFile(o.file)
	if err != nil {
		return fmt.Errorf("--service-account-key: %w", err)
	}
	if o.Signer, err = ParseKey(data); err != nil {
		return fmt.Errorf("--service-account-key: %w", err)
	}
	return nil
}
