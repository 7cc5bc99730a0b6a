-- Forward every CT and US series to the node once no image of it has come for a while (StableAge).
-- SendToModality() would take an instance; a series goes by the REST API, in a job of its own.
-- The node ignores its own results, so forwarding more than CT and US does no harm.
function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'CT' or tags['Modality'] == 'US' then
    RestApiPost('/modalities/pacs-node/store', DumpJson({Resources = {seriesId}, Asynchronous = true}, true))
  end
end
