// Command peers is what tests run against our own programs: clients, a server and a prober of the published Go module.
//
// Every observation is one JSON object on a line of standard output; judging them is left to the tests. Logs go to
// standard error.
//
//	peers client     a DERP client that does what the lines of standard input say
//	peers derpserver a DERP server with TLS and STUN
//	peers netcheck   one report about the regions of a DERP map
//	peers node       a node with the whole engine, which does what the lines of standard input say
//	peers fleet      many nodes that speak to control alone
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"

	"tailscale.com/tailcfg"
)

func main() {
	if len(os.Args) < 2 {
		fail("which one: client, derpserver, netcheck, node or fleet?")
	}
	verb, arguments := os.Args[1], os.Args[2:]
	var err error
	switch verb {
	case "client":
		err = runClient(arguments)
	case "derpserver":
		err = runServer(arguments)
	case "netcheck":
		err = runNetcheck(arguments)
	case "node":
		err = runNode(arguments)
	case "fleet":
		err = runFleet(arguments)
	default:
		fail("unknown: " + verb)
	}
	if err != nil {
		fail(err.Error())
	}
}

func fail(problem string) {
	fmt.Fprintln(os.Stderr, "peers:", problem)
	os.Exit(1)
}

var output sync.Mutex

// observe prints one observation; its fields alternate between names and values.
func observe(event string, fields ...any) {
	object := map[string]any{"event": event}
	for i := 0; i+1 < len(fields); i += 2 {
		object[fields[i].(string)] = fields[i+1]
	}
	line, err := json.Marshal(object)
	if err != nil {
		fail(err.Error())
	}
	output.Lock()
	defer output.Unlock()
	fmt.Println(string(line))
}

// readRegion reads a DERPRegion as mesh-relay derp-map prints it.
func readRegion(path string) (*tailcfg.DERPRegion, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	region := new(tailcfg.DERPRegion)
	return region, json.Unmarshal(text, region)
}

func newFlags(name string) *flag.FlagSet {
	return flag.NewFlagSet(name, flag.ExitOnError)
}

func logf(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
}
