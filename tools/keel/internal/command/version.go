package command

import (
	"runtime"

	"github.com/spf13/cobra"
)

// release is the version of this build; the linker sets it.
var release = "unknown"

// kubernetesVersion is the release of Kubernetes whose API the apiserver serves.
const kubernetesVersion = "v1.37.2"

// version shows the version of this program.
func (e *env) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of keel, and of the Kubernetes API that its clusters serve",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			e.say("keel %s (%s %s/%s), Kubernetes API %s", release, runtime.Version(), runtime.GOOS, runtime.GOARCH, kubernetesVersion)
			return nil
		},
	}
}
