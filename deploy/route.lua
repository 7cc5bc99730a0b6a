-- Forward every series to the node once it has been stable for a while (StableAge).
-- The node ignores its own results, so forwarding more than CT and US does no harm.
function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'CT' or tags['Modality'] == 'US' then
    SendToModality(seriesId, 'pacs-node')
  end
end
