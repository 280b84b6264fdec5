package command

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/cluster"
)

// Shell completion. It must neither fail nor block: what cannot be found out quickly is not
// offered.

// completeTime bounds requests to container runtimes while a shell waits.
const completeTime = 2 * time.Second

// outputFlag adds the flag -o to a verb that can print JSON.
func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "", "output `format`: json (default: text)")
	offer(cmd, "output", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp))
}

// offer sets the completion of a flag's values.
func offer(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // the flag does not exist
	}
}

// memberNames completes the name of an apiserver of the cluster in --home.
func (e *env) memberNames(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := cluster.Load(e.home)
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, m := range c.Members {
		names = append(names, m.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// clusterIDs completes the id of a cluster of this machine.
func clusterIDs(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	entries, _ := cluster.Registered()
	var ids []string
	for _, x := range entries {
		ids = append(ids, cobra.CompletionWithDesc(x.ID, x.Home))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// traceKinds completes KIND in KIND/NAME.
func traceKinds(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	if len(args) > 0 || strings.Contains(begun, "/") {
		return nil, directive
	}
	kinds := map[string]string{} // the longest singular name, by resource
	for name, k := range traceable {
		if name != k.resource && len(name) > len(kinds[k.resource]) {
			kinds[k.resource] = name
		}
	}
	var out []string
	for _, kind := range slices.Sorted(maps.Values(kinds)) {
		out = append(out, kind+"/")
	}
	return out, directive
}

// imageNames completes the names of images on the nodes.
func (e *env) imageNames(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := cluster.Load(e.home)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	images, _ := imagesOf(ctx, c) // on error, those of the nodes that answered
	names := slices.Sorted(maps.Keys(images))
	return slices.DeleteFunc(names, func(n string) bool { return slices.Contains(args, n) }), cobra.ShellCompDirectiveNoFileComp
}
