package main

import (
	"context"
	"time"

	"tailscale.com/net/netcheck"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
)

// runNetcheck prints one report about a region, by STUN or over TCP alone.
func runNetcheck(arguments []string) error {
	flags := newFlags("netcheck")
	regionFile := flags.String("region", "", "file with a DERPRegion")
	onlyTCP := flags.Bool("tcp", false, "over TCP alone")
	flags.Parse(arguments)

	region, err := readRegion(*regionFile)
	if err != nil {
		return err
	}
	regions := &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{region.RegionID: region}}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := &netcheck.Client{NetMon: netmon.NewStatic(), Logf: logf, SkipExternalNetwork: true}
	if err := client.Standalone(ctx, ":0"); err != nil {
		return err
	}
	report, err := client.GetReport(ctx, regions, &netcheck.GetReportOpts{OnlyTCP443: *onlyTCP})
	if err != nil {
		return err
	}
	latency, answered := report.RegionLatency[region.RegionID]
	observe("report", "udp", report.UDP, "ipv4", report.IPv4, "ipv6", report.IPv6, "preferred", report.PreferredDERP,
		"answered", answered, "latency_us", latency.Microseconds(), "global_v4", report.GlobalV4.String(),
		"global_v6", report.GlobalV6.String())
	return nil
}
