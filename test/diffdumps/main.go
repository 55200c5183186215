// Command diffdumps lists the differences between what our control plane makes of the recorded inputs and what istiod
// made of them (shared/waypoint-dumps), each with its reason. It ends with status 1 when a difference has none.
//
//	go run ./test/diffdumps [-dumps DIR] [-v] [SCENARIO...]
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	dumps := flag.String("dumps", "", "directory of the recordings (default: shared/waypoint-dumps in a folder above)")
	all := flag.Bool("v", false, "also list every explained difference")
	flag.Parse()
	if err := run(*dumps, *all, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "diffdumps:", err)
		os.Exit(1)
	}
}

func run(dir string, all bool, scenarios []string) error {
	if dir == "" {
		if dir = find(); dir == "" {
			fmt.Println("no recordings of istiod: no shared/waypoint-dumps in a folder above; nothing was compared")
			return nil
		}
	}
	if len(scenarios) == 0 {
		var err error
		if scenarios, err = recordedScenarios(dir); err != nil {
			return err
		}
	}
	unexplained := 0
	for _, name := range scenarios {
		r, err := compareScenario(dir, name)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %d resources of istiod, %d of ours, %d equal, %d differences: %d explained, %d not\n",
			name, r.theirs, r.ours, r.equal, len(r.explained)+len(r.open), len(r.explained), len(r.open))
		print := func(list []difference) {
			for _, d := range list {
				fmt.Println("  " + d.String())
			}
		}
		if all {
			print(r.explained)
		} else {
			for _, line := range summary(r.explained) {
				fmt.Println("  " + line)
			}
		}
		print(r.open)
		for _, p := range r.problems {
			fmt.Println("  problem: " + p)
		}
		unexplained += len(r.open)
	}
	if unexplained > 0 {
		return fmt.Errorf("%d differences have no reason", unexplained)
	}
	return nil
}

// summary counts the explained differences by reason.
func summary(list []difference) []string {
	count := map[string]int{}
	for _, d := range list {
		count[d.reason]++
	}
	var out []string
	for reason, n := range count {
		out = append(out, fmt.Sprintf("%d x %s", n, reason))
	}
	slices.Sort(out)
	return out
}

// find looks for the recordings above the working directory.
func find() string {
	dir, err := os.Getwd()
	for err == nil {
		d := filepath.Join(dir, "shared", "waypoint-dumps")
		if info, err := os.Stat(d); err == nil && info.IsDir() {
			return d
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
	return ""
}

func recordedScenarios(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".json"); !strings.Contains(name, ".") {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no recordings in " + dir)
	}
	return out, nil
}
