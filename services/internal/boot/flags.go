package boot

import (
	"cmp"
	"os"

	"github.com/spf13/pflag"
)

// The environment gives the defaults of flags that are the same for all services
// of a deployment, so that one setting reaches them and their health checks.
const (
	opsAddressVariable   = "KEELSON_OPS_ADDRESS"
	otlpEndpointVariable = "KEELSON_OTLP_ENDPOINT"
)

// Service holds the flags that every service has.
type Service struct {
	// Identity is the directory with tls.crt, tls.key and ca.crt.
	Identity string
	// APIServers lists the apiservers' gRPC ports, each as host:port.
	APIServers []string
	// OpsAddress is where metrics, health and profiles are served: host:port, or
	// unix:///path.
	OpsAddress string
	// OTLPEndpoint is the host:port of an OTLP/gRPC collector; empty means none.
	OTLPEndpoint string
}

// ServiceFlags adds the flags of Service to fs.
func ServiceFlags(fs *pflag.FlagSet) *Service {
	s := &Service{}
	fs.StringVar(&s.Identity, "identity", "", "directory with tls.crt, tls.key and ca.crt")
	fs.StringSliceVar(&s.APIServers, "apiserver", nil, "host:port of the apiservers' gRPC ports")
	opsAddress(fs, &s.OpsAddress)
	fs.StringVar(&s.OTLPEndpoint, "otlp-endpoint", os.Getenv(otlpEndpointVariable), "host:port of an OTLP/gRPC collector (without TLS); empty keeps spans in the apiservers only")
	return s
}

func opsAddress(fs *pflag.FlagSet, into *string) {
	fs.StringVar(into, "ops-address", cmp.Or(os.Getenv(opsAddressVariable), "127.0.0.1:0"), "host:port (or unix:///path) for metrics, health and profiles")
}

// Check returns an [Invalid] error if a required flag is missing.
func (s *Service) Check() error {
	if s.Identity == "" {
		return Invalid("--identity is required")
	}
	if len(s.APIServers) == 0 {
		return Invalid("--apiserver is required")
	}
	return nil
}
